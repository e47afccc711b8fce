// Memory of a device (or pinned host memory), kept for reuse.
//
// Every block has an owner stream: the one it was allocated for. A freed block serves that stream again at once,
// because work on a stream is ordered; any other stream only after ReleaseStream said that the stream's work is done,
// so no event is recorded and no thread waits. Blocks allocated for the null stream serve any stream once they are
// freed: whoever frees one vouches that no stream uses it any more.
#ifndef MXORT_DEVICE_ARENA_H_
#define MXORT_DEVICE_ARENA_H_

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device/device.h"
#include "device/status.h"

namespace mxort::device {

// Of every block; parts of one begin at a multiple of it too.
inline constexpr size_t kBlockAlignment = 256;
inline constexpr size_t Aligned(size_t bytes) {
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

class Arena {
 public:
  enum class Kind { kDevice, kPinned };

  struct Statistics {
    size_t in_use = 0;       // bytes handed out and not freed, as allocated (rounded up)
    size_t cached = 0;       // freed, kept for reuse
    size_t peak = 0;         // most of in_use + cached
    size_t limit = 0;        // 0: none
    size_t allocations = 0;  // calls of Allocate
    size_t reserved = 0;     // of these, those that the device had to serve
  };

  // `limit`: the most bytes in use and cached together; 0: what the device has.
  static std::shared_ptr<Arena> Create(const std::shared_ptr<Device>& device, size_t limit = 0,
                                       Kind kind = Kind::kDevice);
  // Gives everything back to the device, blocks in use too.
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // At least `bytes` (0 is valid), 256-byte aligned. Where the limit or the device's memory does not suffice, cached
  // blocks are given back first. kOutOfMemory tells bytes asked, in use, and the limit.
  Status Allocate(size_t bytes, void* stream, void** pointer);
  // Null is ignored. False: not a block in use of this arena; nothing happens.
  bool Free(void* pointer);
  // All work that was given to `stream` so far is done: its freed blocks may serve any stream. To be called when a
  // stream has been synchronised, and before it is destroyed.
  void ReleaseStream(void* stream);
  // Gives cached blocks back to the device. Waits for the device, as freeing does.
  Status Trim();

  Statistics statistics() const;
  Kind kind() const { return kind_; }
  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  struct Block {
    size_t bytes;
    void* stream;
  };
  Arena(std::shared_ptr<Device> device, size_t limit, Kind kind)
      : device_(std::move(device)), limit_(limit), kind_(kind) {}
  void* TakeCached(size_t bytes, void* stream);
  Status Reserve(size_t bytes, void** pointer);
  Status GiveBack(void* pointer) const;
  Status TrimLocked();

  const std::shared_ptr<Device> device_;
  const size_t limit_;
  const Kind kind_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, Block> used_;
  std::map<std::pair<void*, size_t>, std::vector<void*>> cached_;  // by stream (null: any) and size
  Statistics statistics_;
};

// A block of an arena, freed at the end of its scope.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { Reset(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Status Allocate(const std::shared_ptr<Arena>& arena, size_t bytes, void* stream);
  void Reset();
  void* data() const { return data_; }

 private:
  std::shared_ptr<Arena> arena_;
  void* data_ = nullptr;
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_ARENA_H_
