// Device memory towards ONNX Runtime: what it is called, allocators over the device layer's arenas, and copies.
#ifndef MXORT_PROVIDER_MEMORY_H_
#define MXORT_PROVIDER_MEMORY_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "device/arena.h"
#include "provider/runtime.h"

namespace mxort::provider {

struct MemoryInfoDeleter {
  const OrtApi* api;
  void operator()(OrtMemoryInfo* info) const { api->ReleaseMemoryInfo(info); }
};
using MemoryInfoPtr = std::unique_ptr<OrtMemoryInfo, MemoryInfoDeleter>;

// Memory of the GPU `ordinal`, or host memory pinned for it. Vendor and number are what MIGraphX and ROCm use for the
// same device, so that ONNX Runtime puts no copies between their nodes and ours.
MemoryInfoPtr MakeMemoryInfo(const Runtime& runtime, int ordinal, device::Arena::Kind kind);

// An arena behind ONNX Runtime's idea of when memory is free.
//  * Without a stream it frees blocks that a run in flight still uses (onnxruntime 1.24 allocates the activations of
//    static shapes so): the device is waited for before they serve again.
//  * A captured graph's replay writes to the addresses of the run that was captured: what that run allocated serves
//    nobody else until the graph is gone.
class Memory {
 public:
  explicit Memory(std::shared_ptr<device::Arena> arena) : arena_(std::move(arena)) {}

  const std::shared_ptr<device::Arena>& arena() const { return arena_; }
  device::Status Allocate(size_t bytes, void* stream, void** pointer);
  void Free(void* pointer);

  // Until EndGraph, allocations belong to graph `id`.
  void BeginGraph(int id);
  void EndGraph();
  // The graph is gone: what is its own may be used again.
  void ReleaseGraph(int id);

 private:
  struct Held {
    int graph;
    bool freed;
  };
  const std::shared_ptr<device::Arena> arena_;
  std::mutex mutex_;
  std::optional<int> graph_;
  std::unordered_map<void*, Held> held_;
  std::unordered_set<void*> unordered_;  // allocated without a stream
};

// How many objects ONNX Runtime holds that it gives back through the factory.
using LiveCount = std::shared_ptr<std::atomic<int>>;

// An OrtAllocator over `memory`, counted in `live`. It reports failures to the log and, through TakeAllocationError, to
// the kernel that then meets a null pointer: ONNX Runtime itself drops the reason. `info` must outlive it.
OrtAllocator* MakeAllocator(const Runtime& runtime, const Logger& logger, const OrtMemoryInfo* info,
                            std::shared_ptr<Memory> memory, LiveCount live);
void ReleaseAllocator(OrtAllocator* allocator);

// Why the last allocation of this thread failed; empty where none did since the last call.
std::string TakeAllocationError();

// The provider's OrtDataTransferImpl; it releases itself.
OrtDataTransferImpl* MakeDataTransfer(const Runtime& runtime);

// Copies a tensor between host and devices; asynchronous where `stream` is not null and neither side is pageable.
void CopyTensor(const Runtime& runtime, const OrtValue* from, OrtValue* to, void* stream);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_MEMORY_H_
