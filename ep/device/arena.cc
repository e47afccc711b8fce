#include "device/arena.h"

#include <algorithm>
#include <string>

namespace mxort::device {
namespace {

// Sizes come in classes an eighth apart, so that blocks of similar tensors serve each other; at most an eighth is lost.
size_t ClassOf(size_t bytes) {
  constexpr size_t kSmallest = kBlockAlignment;
  if (bytes <= kSmallest) return kSmallest;
  size_t step = kSmallest;
  while (step * 16 < bytes) step *= 2;  // bytes lies in (8 step, 16 step], or below the first of these ranges
  return (bytes + step - 1) / step * step;
}

}  // namespace

std::shared_ptr<Arena> Arena::Create(const std::shared_ptr<Device>& device, size_t limit, Kind kind) {
  return std::shared_ptr<Arena>(new Arena(device, limit, kind));
}

Arena::~Arena() {
  const HipApi& hip = device_->hip();
  const CurrentDevice current(hip, device_->ordinal());
  for (const auto& [key, blocks] : cached_) {
    for (void* block : blocks) (void)GiveBack(block);
  }
  for (const auto& [block, _] : used_) (void)GiveBack(block);
}

Status Arena::Allocate(size_t bytes, void* stream, void** pointer) {
  *pointer = nullptr;
  if (bytes > ~size_t{0} / 2) {
    return {ErrorCode::kOutOfMemory, "device memory: got a size of " + std::to_string(bytes) + " bytes"};
  }
  const size_t size = ClassOf(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  ++statistics_.allocations;
  void* block = TakeCached(size, stream);
  if (!block && stream) block = TakeCached(size, nullptr);
  if (!block) MXORT_RETURN_IF_ERROR(Reserve(size, &block));
  used_[block] = {size, stream};
  statistics_.in_use += size;
  statistics_.peak = std::max(statistics_.peak, statistics_.in_use + statistics_.cached);
  *pointer = block;
  return {};
}

void* Arena::TakeCached(size_t bytes, void* stream) {
  const auto it = cached_.find({stream, bytes});
  if (it == cached_.end()) return nullptr;
  void* block = it->second.back();
  it->second.pop_back();
  if (it->second.empty()) cached_.erase(it);
  statistics_.cached -= bytes;
  return block;
}

// A new block from the device; what is cached goes back first if there is no room otherwise.
Status Arena::Reserve(size_t bytes, void** pointer) {
  const HipApi& hip = device_->hip();
  const CurrentDevice current(hip, device_->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  const auto full = [&] { return limit_ != 0 && statistics_.in_use + statistics_.cached + bytes > limit_; };
  if (full() && statistics_.cached > 0) MXORT_RETURN_IF_ERROR(TrimLocked());
  const auto refuse = [&](const std::string& why) {
    const char* what = kind_ == Kind::kPinned ? "pinned host memory" : "memory";
    return Status(ErrorCode::kOutOfMemory, std::string(what) + " of GPU " + std::to_string(device_->ordinal()) +
                                               ": got a request of " + std::to_string(bytes) + " bytes with " +
                                               std::to_string(statistics_.in_use) + " in use, " + why);
  };
  if (full()) return refuse("limit is " + std::to_string(limit_));
  const auto reserve = [&] {
    if (kind_ == Kind::kPinned) return hip.Check(hip.hipHostMalloc(pointer, bytes, 0), "hipHostMalloc");
    return hip.Check(hip.hipMalloc(pointer, bytes), "hipMalloc");
  };
  Status status = reserve();
  if (status.code() == ErrorCode::kOutOfMemory && statistics_.cached > 0) {
    MXORT_RETURN_IF_ERROR(TrimLocked());
    status = reserve();
  }
  if (status.code() == ErrorCode::kOutOfMemory) return refuse(status.message());
  if (status.ok()) ++statistics_.reserved;
  return status;
}

bool Arena::Free(void* pointer) {
  if (!pointer) return true;
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = used_.find(pointer);
  if (it == used_.end()) return false;
  const Block block = it->second;
  used_.erase(it);
  cached_[{block.stream, block.bytes}].push_back(pointer);
  statistics_.in_use -= block.bytes;
  statistics_.cached += block.bytes;
  return true;
}

void Arena::ReleaseStream(void* stream) {
  if (!stream) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  auto it = cached_.lower_bound({stream, 0});
  while (it != cached_.end() && it->first.first == stream) {
    auto& any = cached_[{nullptr, it->first.second}];
    any.insert(any.end(), it->second.begin(), it->second.end());
    it = cached_.erase(it);
  }
  // What is still in use now belongs to nobody: its owner may be destroyed, and another stream get the same address.
  for (auto& [pointer, block] : used_) {
    if (block.stream == stream) block.stream = nullptr;
  }
}

Status Arena::GiveBack(void* pointer) const {
  const HipApi& hip = device_->hip();
  if (kind_ == Kind::kPinned) return hip.Check(hip.hipHostFree(pointer), "hipHostFree");
  return hip.Check(hip.hipFree(pointer), "hipFree");
}

Status Arena::Trim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const HipApi& hip = device_->hip();
  const CurrentDevice current(hip, device_->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  return TrimLocked();
}

Status Arena::TrimLocked() {
  Status status;  // the first error; freeing goes on, and nothing is freed twice
  for (const auto& [key, blocks] : cached_) {
    for (void* block : blocks) {
      const Status freed = GiveBack(block);
      if (status.ok()) status = freed;
      statistics_.cached -= key.second;
    }
  }
  cached_.clear();
  return status;
}

Arena::Statistics Arena::statistics() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Statistics copy = statistics_;
  copy.limit = limit_;
  return copy;
}

Status Buffer::Allocate(const std::shared_ptr<Arena>& arena, size_t bytes, void* stream) {
  Reset();
  MXORT_RETURN_IF_ERROR(arena->Allocate(bytes, stream, &data_));
  arena_ = arena;
  return {};
}

void Buffer::Reset() {
  if (data_) arena_->Free(data_);
  data_ = nullptr;
  arena_.reset();
}

}  // namespace mxort::device
