#include "kernels/weight_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <new>
#include <vector>

namespace mxort {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kChunk = 16 * kHugePage;  // address space; memory is taken as it is written, a page at a time
constexpr size_t kAlignment = 64;

size_t RoundUp(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

std::shared_ptr<uint8_t> MapChunk(size_t bytes) {
  const size_t mapped = bytes + kHugePage;  // to begin at a multiple of a huge page
  void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  auto* begin = reinterpret_cast<uint8_t*>(RoundUp(reinterpret_cast<uintptr_t>(start), kHugePage));
#if defined(MADV_HUGEPAGE)
  madvise(begin, bytes, MADV_HUGEPAGE);  // a wish: without it pages are small
#endif
  return {begin, [start, mapped](uint8_t*) { munmap(start, mapped); }};
}

// Those that are nobody else's.
void ReturnPages(uint8_t* data, size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t first = RoundUp(reinterpret_cast<uintptr_t>(data), page);
  const size_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace

std::shared_ptr<uint8_t> AllocateWeights(size_t bytes) {
  // Leaked on purpose: kernels of a session may be destroyed after static destructors have run.
  static auto& mutex = *new std::mutex;
  static auto& current = *new std::weak_ptr<uint8_t>;
  static size_t size, used;
  const size_t rounded = RoundUp(std::max<size_t>(1, bytes), kAlignment);
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<uint8_t> chunk = current.lock();
  if (!chunk || size - used < rounded) {
    size = std::max(kChunk, RoundUp(rounded, kHugePage));
    used = 0;
    chunk = MapChunk(size);
    current = chunk;
  }
  uint8_t* data = chunk.get() + used;
  used += rounded;
  return {data, [chunk, rounded](uint8_t* p) { ReturnPages(p, rounded); }};
}

void DropFilePages([[maybe_unused]] const void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  // An entry of pagemap for each page. A private mapping's page that was written to is no longer the file's.
  constexpr uint64_t kOfFile = uint64_t{1} << 61, kPresent = uint64_t{1} << 63;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t first = RoundUp(reinterpret_cast<uintptr_t>(data), page) / page;
  const size_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page;
  const std::unique_ptr<FILE, int (*)(FILE*)> map(std::fopen("/proc/self/pagemap", "rbe"), std::fclose);
  if (first >= last || !map || std::fseek(map.get(), static_cast<long>(first * sizeof(uint64_t)), SEEK_SET)) return;
  std::vector<uint64_t> entries(last - first);
  if (std::fread(entries.data(), sizeof(uint64_t), entries.size(), map.get()) != entries.size()) return;
  const auto droppable = [&](size_t i) { return (entries[i] & kPresent) && (entries[i] & kOfFile); };
  for (size_t i = 0; i < entries.size();) {
    size_t end = i;
    while (end < entries.size() && droppable(end)) ++end;
    if (end > i) madvise(reinterpret_cast<void*>((first + i) * page), (end - i) * page, MADV_DONTNEED);
    i = end + 1;
  }
#endif
}

}  // namespace mxort
