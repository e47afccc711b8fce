// One session's execution provider, on a GPU.
#ifndef MXORT_PROVIDER_EP_H_
#define MXORT_PROVIDER_EP_H_

#include <memory>
#include <string>

#include "device/arena.h"
#include "device/device.h"
#include "kernels/experts.h"
#include "provider/graph.h"
#include "provider/host_ep.h"
#include "provider/kernels.h"
#include "provider/memory.h"
#include "provider/options.h"
#include "provider/profiler.h"
#include "provider/runtime.h"

namespace mxort::provider {

// The memory of a GPU, as ONNX Runtime knows it, and what serves it outside of sessions.
struct Gpu {
  device::DeviceInfo info;
  MemoryInfoPtr memory, pinned;
};

class Ep : public OwnedEp {
 public:
  // `gpu` and `pinned` belong to the factory, which outlives its providers.
  Ep(const Runtime& runtime, const Logger& logger, const Gpu& gpu, std::shared_ptr<device::Device> device,
     std::shared_ptr<Memory> pinned, const Options& options, LiveCount live);
  ~Ep() override { --*live_; }

  const Runtime& runtime() const { return runtime_; }
  const Options& options() const { return options_; }
  const std::shared_ptr<device::Device>& device() const { return device_; }
  const std::shared_ptr<device::Arena>& arena() const { return memory_->arena(); }

  // Why no kernel of the device computes this product, or these experts; empty: one does, and it passed its self-check.
  std::string WhyUnsupported(const MatMulSpec& spec, DataType type) const;
  std::string WhyUnsupported(const ExpertsSpec& spec, DataType type) const;
  // Which of these kernels (device::KernelFamily) failed its self-check; empty: none.
  std::string WhyWrong(unsigned kernels, DataType type) const;

  // Around a launch: measures it while a profiler listens.
  // Plan: MatMulPlan, ExpertsPlan.
  template <class Plan>
  ProfiledLaunch Profile(void* stream, const std::string& node, const Plan& plan, int64_t rows) const {
    if (!launches_->active() || capturing()) return {};
    return {*launches_, device_, stream, node, plan.KernelFor(rows), rows};
  }

  // Whether this run is being recorded, and memory that the recorded graph may use as long as it exists.
  bool capturing() const { return graphs_ && graphs_->recording(); }
  void* CaptureWorkspace(size_t bytes);
  // Of a node that failed. True: only because the recording was lost, which is to be reported as success: the model is
  // run again.
  bool RunFailed() const { return graphs_ && graphs_->RunFailed(); }

 private:
  template <class Supported, class Checked, class Spec>
  std::string WhyUnsupported(const Supported& supports, const Checked& check, const Spec& spec, DataType type) const;
  std::string WhyUnusable(const device::Status& status) const;
  void SetRunFunctions();
  void SetGraphFunctions();
  OrtAllocator* CreateAllocatorFor(const OrtMemoryInfo* info) const;
  OrtSyncStreamImpl* CreateStreamFor(const OrtMemoryDevice* memory) const;
  int GraphId(const OrtRunOptions* options) const;

  const Runtime runtime_;
  const Logger logger_;
  const Gpu& gpu_;
  const std::shared_ptr<device::Device> device_;
  const std::shared_ptr<Memory> memory_, pinned_;
  const Options options_;
  const std::shared_ptr<LaunchLog> launches_;
  std::unique_ptr<GraphCapture> graphs_;  // null: not asked for, or the runtime has none
  std::unique_ptr<KernelRegistry> registry_;
  const LiveCount live_;
};

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_EP_H_
