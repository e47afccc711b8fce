#include "provider/ep.h"

#include <charconv>
#include <cstring>
#include <utility>
#include <vector>

#include "device/experts.h"
#include "device/matmul_plan.h"
#include "device/self_check.h"
#include "device/tensor_check.h"
#include "ops/device_status.h"
#include "provider/capability.h"
#include "provider/fusion.h"
#include "provider/stream.h"

namespace mxort::provider {
namespace {

Ep& Self(OrtEp* ep) { return *static_cast<Ep*>(ep); }
const Ep& Self(const OrtEp* ep) { return *static_cast<const Ep*>(ep); }

}  // namespace

Ep::Ep(const Runtime& runtime, const Logger& logger, const Gpu& gpu, std::shared_ptr<device::Device> device,
       std::shared_ptr<Memory> pinned, const Options& options, LiveCount live)
    : runtime_(runtime),
      logger_(logger),
      gpu_(gpu),
      device_(std::move(device)),
      memory_(std::make_shared<Memory>(device::Arena::Create(device_, options.memory_limit))),
      pinned_(std::move(pinned)),
      options_(options),
      launches_(std::make_shared<LaunchLog>()),
      live_(std::move(live)) {
  ort_version_supported = runtime.version;
  GetName = [](const OrtEp* self) noexcept { return Self(self).runtime_.name; };
  GetCapability = [](OrtEp* self, const OrtGraph* graph, OrtEpGraphSupportInfo* support) noexcept -> OrtStatus* {
    Ep& ep = Self(self);
    return Guard(*ep.runtime_.api, kEpName, [&] { ClaimNodes(ep, graph, support, ep.logger_); });
  };
  Compile = [](OrtEp* self, const OrtGraph** graphs, const OrtNode** fused, size_t count, OrtNodeComputeInfo** infos,
               OrtNode**) noexcept -> OrtStatus* {
    Ep& ep = Self(self);
    return Guard(*ep.runtime_.api, kEpName, [&] {
      std::vector<std::unique_ptr<FusedNode>> made;
      for (size_t i = 0; i < count; ++i) made.push_back(MakeFusedNode(ep, {ep.runtime_, graphs[i], fused[i]}));
      for (size_t i = 0; i < count; ++i) infos[i] = made[i].release();
    });
  };
  ReleaseNodeComputeInfos = [](OrtEp*, OrtNodeComputeInfo** infos, size_t count) noexcept {
    for (size_t i = 0; i < count; ++i) delete static_cast<FusedNode*>(infos[i]);
  };
  GetKernelRegistry = [](OrtEp* self, const OrtKernelRegistry** registry) noexcept -> OrtStatus* {
    Ep& ep = Self(self);
    return Guard(*ep.runtime_.api, kEpName, [&] {
      if (!ep.registry_) ep.registry_ = std::make_unique<KernelRegistry>(ep);
      *registry = ep.registry_->get();
    });
  };
  CreateAllocator = [](OrtEp* self, const OrtMemoryInfo* info, OrtAllocator** allocator) noexcept -> OrtStatus* {
    Ep& ep = Self(self);
    return Guard(*ep.runtime_.api, kEpName, [&] { *allocator = ep.CreateAllocatorFor(info); });
  };
  CreateSyncStreamForDevice = [](OrtEp* self, const OrtMemoryDevice* memory,
                                 OrtSyncStreamImpl** stream) noexcept -> OrtStatus* {
    Ep& ep = Self(self);
    return Guard(*ep.runtime_.api, kEpName, [&] { *stream = ep.CreateStreamFor(memory); });
  };
  SetRunFunctions();
  SetGraphFunctions();
  ++*live_;  // the destructor runs only for what is constructed
}

// Members that a runtime does not know stay null.
void Ep::SetRunFunctions() {
  IsConcurrentRunSupported = [](OrtEp* self, bool* is_supported) noexcept -> OrtStatus* {
    *is_supported = Self(self).graphs_ == nullptr;
    return nullptr;
  };
  if (runtime_.version >= 25) {
    Sync = [](OrtEp* self) noexcept -> OrtStatus* {
      Ep& ep = Self(self);
      return Guard(*ep.runtime_.api, kEpName, [&] {
        if (!ep.capturing()) Check(ep.device_->Synchronize());
      });
    };
    CreateProfiler = [](OrtEp* self, OrtEpProfilerImpl** profiler) noexcept -> OrtStatus* {
      Ep& ep = Self(self);
      return Guard(*ep.runtime_.api, kEpName, [&] { *profiler = MakeProfiler(ep.runtime_, ep.launches_, ep.device_); });
    };
  }
  if (runtime_.version >= 27) {
    GetDefaultMemoryDevice = [](const OrtEp* self, const OrtMemoryDevice** memory) noexcept -> OrtStatus* {
      const Ep& ep = Self(self);
      *memory = ep.runtime_.ep->MemoryInfo_GetMemoryDevice(ep.gpu_.memory.get());
      return nullptr;
    };
  }
}

void Ep::SetGraphFunctions() {
  if (!options_.graph_capture) return;
  if (runtime_.version < 26) {
    throw std::invalid_argument("provider option graph_capture: got '1', expected 0 with an onnxruntime before 1.26");
  }
  graphs_ = std::make_unique<GraphCapture>(device_, CreateStream(device_), memory_);
  IsGraphCaptureEnabled = [](const OrtEp*) noexcept { return true; };
  IsGraphCaptured = [](const OrtEp* self, int id) noexcept { return Self(self).graphs_->Captured(id); };
  ReplayGraph = [](OrtEp* self, int id) noexcept -> OrtStatus* {
    Ep& ep = Self(self);
    return Guard(*ep.runtime_.api, kEpName, [&] { ep.graphs_->Replay(id); });
  };
  OnRunStart = [](OrtEp* self, const OrtRunOptions* options) noexcept -> OrtStatus* {
    Ep& ep = Self(self);
    return Guard(*ep.runtime_.api, kEpName, [&] { ep.graphs_->RunStart(ep.GraphId(options)); });
  };
  OnRunEnd = [](OrtEp* self, const OrtRunOptions* options, bool) noexcept -> OrtStatus* {
    Ep& ep = Self(self);
    return Guard(*ep.runtime_.api, kEpName, [&] { ep.graphs_->RunEnd(ep.GraphId(options)); });
  };
  if (runtime_.version >= 27) {
    ReleaseCapturedGraph = [](OrtEp* self, int id) noexcept -> OrtStatus* {
      Ep& ep = Self(self);
      return Guard(*ep.runtime_.api, kEpName, [&] { ep.graphs_->Release(id); });
    };
  }
}

// Kernels that fail the self-check do not count, so that a node which no kernel is left for runs on the CPU.
std::string Ep::WhyUnsupported(const MatMulSpec& spec, DataType type) const {
  return WhyUnsupported(device::Supports, device::CheckKernels, spec, type);
}
std::string Ep::WhyUnsupported(const ExpertsSpec& spec, DataType type) const {
  return WhyUnsupported(device::SupportsExperts, device::CheckExpertsKernels, spec, type);
}

template <class Supported, class Checked, class Spec>
std::string Ep::WhyUnsupported(const Supported& supports, const Checked& check, const Spec& spec, DataType type) const {
  device::Status status = supports(gpu_.info, spec, type, 0);
  if (!status.ok()) return status.message();
  uint64_t disabled = 0;
  status = check(device_, spec, type, options_.self_check, &disabled);
  if (!status.ok()) return WhyUnusable(status);
  return supports(gpu_.info, spec, type, disabled).message();
}

std::string Ep::WhyWrong(unsigned kernels, DataType type) const {
  std::string wrong;
  const device::Status status = device::CheckTensorKernels(device_, kernels, type, options_.self_check, &wrong);
  if (!status.ok()) return WhyUnusable(status);
  return wrong.empty() ? "" : "kernel " + wrong + " failed its self-check";
}

std::string Ep::WhyUnusable(const device::Status& status) const {
  logger_.Log(ORT_LOGGING_LEVEL_WARNING, gpu_.info.name + " cannot be used: " + status.message());
  return status.message();
}

OrtAllocator* Ep::CreateAllocatorFor(const OrtMemoryInfo* info) const {
  const bool pinned = runtime_.ep->MemoryDevice_GetMemoryType(runtime_.ep->MemoryInfo_GetMemoryDevice(info)) ==
                      OrtDeviceMemoryType_HOST_ACCESSIBLE;
  return pinned ? MakeAllocator(runtime_, logger_, gpu_.pinned.get(), pinned_, live_)
                : MakeAllocator(runtime_, logger_, gpu_.memory.get(), memory_, live_);
}

OrtSyncStreamImpl* Ep::CreateStreamFor(const OrtMemoryDevice* memory) const {
  const auto ordinal = static_cast<int>(runtime_.ep->MemoryDevice_GetDeviceId(memory));
  if (ordinal != device_->ordinal()) {
    throw std::invalid_argument("stream: got GPU " + std::to_string(ordinal) + ", expected GPU " +
                                std::to_string(device_->ordinal()));
  }
  return MakeSyncStream(runtime_, device_, graphs_ ? graphs_->stream() : CreateStream(device_),
                        {memory_->arena(), pinned_->arena()});
}

int Ep::GraphId(const OrtRunOptions* options) const {
  const char* text = options ? runtime_.api->GetRunConfigEntry(options, "gpu_graph_id") : nullptr;
  int id = 0;
  if (text) std::from_chars(text, text + std::strlen(text), id);  // ONNX Runtime has refused what is no number
  return id;
}

void* Ep::CaptureWorkspace(size_t bytes) {
  void* workspace = nullptr;
  Check(memory_->Allocate(bytes, graphs_->stream()->handle(), &workspace));
  memory_->Free(workspace);  // held back until the graph is gone
  return workspace;
}

}  // namespace mxort::provider
