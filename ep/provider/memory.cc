#include "provider/memory.h"

#include <atomic>
#include <utility>

#include "device/device.h"
#include "ops/device_status.h"

namespace mxort::provider {
namespace {

thread_local std::string allocation_error;

// Where a tensor lies: an ordinal or device::kHost. Pinned memory is the host's; its "device" is the GPU it is for.
int PlaceOf(const Runtime& runtime, const OrtMemoryDevice* memory) {
  const bool on_device = runtime.ep->MemoryDevice_GetDeviceType(memory) == OrtMemoryInfoDeviceType_GPU &&
                         runtime.ep->MemoryDevice_GetMemoryType(memory) == OrtDeviceMemoryType_DEFAULT;
  return on_device ? static_cast<int>(runtime.ep->MemoryDevice_GetDeviceId(memory)) : device::kHost;
}

// Memory that this provider can reach: the host's and that of AMD's GPUs.
bool Reachable(const Runtime& runtime, const OrtMemoryDevice* memory) {
  switch (runtime.ep->MemoryDevice_GetDeviceType(memory)) {
    case OrtMemoryInfoDeviceType_CPU:
      return true;
    case OrtMemoryInfoDeviceType_GPU:
      return runtime.ep->MemoryDevice_GetVendorId(memory) == kVendorId;
    default:
      return false;
  }
}

size_t BytesOf(const Runtime& runtime, const OrtValue* value) {
  size_t bytes = 0;
  runtime.Check(runtime.api->GetTensorSizeInBytes(value, &bytes));
  return bytes;
}

struct DataTransfer : OrtDataTransferImpl {
  explicit DataTransfer(const Runtime& loaded) : OrtDataTransferImpl{}, runtime(loaded) {
    ort_version_supported = runtime.version;
    Release = [](OrtDataTransferImpl* self) noexcept { delete static_cast<DataTransfer*>(self); };
    CanCopy = [](const OrtDataTransferImpl* self, const OrtMemoryDevice* from, const OrtMemoryDevice* to) noexcept {
      const Runtime& rt = static_cast<const DataTransfer*>(self)->runtime;
      const auto is_gpu = [&](const OrtMemoryDevice* memory) {
        return rt.ep->MemoryDevice_GetDeviceType(memory) == OrtMemoryInfoDeviceType_GPU;
      };
      return Reachable(rt, from) && Reachable(rt, to) && (is_gpu(from) || is_gpu(to));
    };
    CopyTensors = [](OrtDataTransferImpl* self, const OrtValue** from, OrtValue** to, OrtSyncStream** streams,
                     size_t count) noexcept -> OrtStatus* {
      const Runtime& rt = static_cast<const DataTransfer*>(self)->runtime;
      return Guard(*rt.api, kEpName, [&] {
        for (size_t i = 0; i < count; ++i) {
          const bool ordered = streams && streams[i];
          CopyTensor(rt, from[i], to[i], ordered ? rt.api->SyncStream_GetHandle(streams[i]) : nullptr);
        }
      });
    };
  }
  const Runtime runtime;
};

struct Allocator : OrtAllocator {
  Allocator(const Runtime& loaded, const Logger& its_logger, const OrtMemoryInfo* its_info,
            std::shared_ptr<Memory> its_memory, LiveCount its_live)
      : OrtAllocator{},
        runtime(loaded),
        logger(its_logger),
        info(its_info),
        memory(std::move(its_memory)),
        live(std::move(its_live)) {
    ++*live;
    version = runtime.version;
    Alloc = [](OrtAllocator* self, size_t bytes) noexcept {
      return static_cast<Allocator*>(self)->Allocate(bytes, nullptr);
    };
    Reserve = Alloc;
    AllocOnStream = [](OrtAllocator* self, size_t bytes, OrtSyncStream* stream) noexcept {
      auto& allocator = *static_cast<Allocator*>(self);
      return allocator.Allocate(bytes, stream ? allocator.runtime.api->SyncStream_GetHandle(stream) : nullptr);
    };
    Free = [](OrtAllocator* self, void* pointer) noexcept {
      if (!pointer) return;
      auto* allocator = static_cast<Allocator*>(self);
      allocator->memory->Free(pointer);
      allocator->Drop();
    };
    Info = [](const OrtAllocator* self) noexcept { return static_cast<const Allocator*>(self)->info; };
    GetStats = [](const OrtAllocator* self, OrtKeyValuePairs** out) noexcept -> OrtStatus* {
      const auto& allocator = *static_cast<const Allocator*>(self);
      return Guard(*allocator.runtime.api, kEpName, [&] { *out = allocator.Statistics().release(); });
    };
    if (runtime.version >= 25) {
      Shrink = [](OrtAllocator* self) noexcept -> OrtStatus* {
        const auto& allocator = *static_cast<Allocator*>(self);
        return Guard(*allocator.runtime.api, kEpName, [&] { Check(allocator.memory->arena()->Trim()); });
      };
    }
  }

  ~Allocator() { --*live; }
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  void* Allocate(size_t bytes, void* stream) noexcept {
    void* pointer = nullptr;
    if (bytes == 0) return pointer;
    const device::Status status = memory->Allocate(bytes, stream, &pointer);
    if (status.ok()) {
      ++users;
      return pointer;
    }
    allocation_error = status.message();
    logger.Log(ORT_LOGGING_LEVEL_ERROR, allocation_error);
    return nullptr;
  }

  KeyValuePairsPtr Statistics() const {  // the names are those of OrtAllocator::GetStats
    const device::Arena::Statistics s = memory->arena()->statistics();
    return MakeKeyValuePairs(runtime, {{"Limit", s.limit ? std::to_string(s.limit) : "-1"},
                                       {"InUse", std::to_string(s.in_use)},
                                       {"TotalAllocated", std::to_string(s.in_use + s.cached)},
                                       {"MaxInUse", std::to_string(s.peak)},
                                       {"NumAllocs", std::to_string(s.allocations)},
                                       {"NumArenaExtensions", std::to_string(s.reserved)}});
  }

  void Drop() noexcept {
    if (--users == 0) delete this;
  }

  const Runtime runtime;
  const Logger logger;
  const OrtMemoryInfo* const info;
  const std::shared_ptr<Memory> memory;
  const LiveCount live;
  // ONNX Runtime and every block: a tensor that outlives the registration of the library is still freed through here.
  std::atomic<size_t> users{1};
};

}  // namespace

MemoryInfoPtr MakeMemoryInfo(const Runtime& runtime, int ordinal, device::Arena::Kind kind) {
  const bool pinned = kind == device::Arena::Kind::kPinned;
  OrtMemoryInfo* info = nullptr;
  runtime.Check(runtime.api->CreateMemoryInfo_V2(
      pinned ? "MxortPinned" : "Mxort", OrtMemoryInfoDeviceType_GPU, kVendorId, ordinal,
      pinned ? OrtDeviceMemoryType_HOST_ACCESSIBLE : OrtDeviceMemoryType_DEFAULT, 0, OrtDeviceAllocator, &info));
  return {info, MemoryInfoDeleter{runtime.api}};
}

device::Status Memory::Allocate(size_t bytes, void* stream, void** pointer) {
  MXORT_RETURN_IF_ERROR(arena_->Allocate(bytes, stream, pointer));
  const std::lock_guard<std::mutex> lock(mutex_);
  if (graph_) held_[*pointer] = {*graph_, false};
  if (!stream) unordered_.insert(*pointer);
  return {};
}

void Memory::Free(void* pointer) {
  bool in_flight = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    in_flight = unordered_.erase(pointer) > 0 && arena_->kind() == device::Arena::Kind::kDevice;
    const auto it = held_.find(pointer);
    if (it != held_.end()) {
      it->second.freed = true;
      return;
    }
    if (in_flight && graph_) {  // nothing can be waited for while a graph is recorded
      held_[pointer] = {*graph_, true};
      return;
    }
  }
  if (in_flight) (void)arena_->device()->Synchronize();  // what failed on the device is reported by the run
  arena_->Free(pointer);
}

void Memory::BeginGraph(int id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  graph_ = id;
}

void Memory::EndGraph() {
  const std::lock_guard<std::mutex> lock(mutex_);
  graph_.reset();
}

void Memory::ReleaseGraph(int id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = held_.begin(); it != held_.end();) {
    if (it->second.graph != id) {
      ++it;
      continue;
    }
    if (it->second.freed) arena_->Free(it->first);
    it = held_.erase(it);
  }
}

OrtAllocator* MakeAllocator(const Runtime& runtime, const Logger& logger, const OrtMemoryInfo* info,
                            std::shared_ptr<Memory> memory, LiveCount live) {
  return new Allocator(runtime, logger, info, std::move(memory), std::move(live));
}

void ReleaseAllocator(OrtAllocator* allocator) { static_cast<Allocator*>(allocator)->Drop(); }

std::string TakeAllocationError() { return std::exchange(allocation_error, {}); }

OrtDataTransferImpl* MakeDataTransfer(const Runtime& runtime) { return new DataTransfer(runtime); }

void CopyTensor(const Runtime& runtime, const OrtValue* from, OrtValue* to, void* stream) {
  const size_t bytes = BytesOf(runtime, from);
  if (bytes != BytesOf(runtime, to)) {
    throw std::invalid_argument("copy: got " + std::to_string(BytesOf(runtime, to)) + " bytes to copy to, expected " +
                                std::to_string(bytes));
  }
  if (bytes == 0) return;
  void *source = nullptr, *target = nullptr;
  runtime.Check(runtime.api->GetTensorMutableData(const_cast<OrtValue*>(from), &source));
  runtime.Check(runtime.api->GetTensorMutableData(to, &target));
  if (source == target) return;
  if (!source || !target) throw std::runtime_error("copy: no memory: " + TakeAllocationError());
  const int from_device = PlaceOf(runtime, runtime.ep->Value_GetMemoryDevice(from));
  const int to_device = PlaceOf(runtime, runtime.ep->Value_GetMemoryDevice(to));
  if (!stream && from_device != device::kHost) {
    // Who gives no stream expects the tensor to be finished, but only its device knows.
    std::shared_ptr<device::Device> gpu;
    Check(device::Device::Open(from_device, &gpu));
    Check(gpu->Synchronize());
  }
  Check(device::Copy(to_device, target, from_device, source, bytes, stream));
}

}  // namespace mxort::provider
