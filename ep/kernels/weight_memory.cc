#include "kernels/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <new>

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
  return {chunk, data};
}

}  // namespace mxort
