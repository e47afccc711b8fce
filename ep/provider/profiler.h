// Kernel times for ONNX Runtime's profile, from HIP events around each launch.
#ifndef MXORT_PROVIDER_PROFILER_H_
#define MXORT_PROVIDER_PROFILER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device/device.h"
#include "provider/runtime.h"

namespace mxort::provider {

// A launch that was measured.
struct Launch {
  std::string node, kernel;
  int64_t rows = 0;
  std::unique_ptr<device::Event> begin, end;
};

// The launches of a provider while somebody profiles. Costs one atomic load when nobody does.
class LaunchLog {
 public:
  using Sink = std::vector<std::shared_ptr<const Launch>>;

  bool active() const { return listeners_.load(std::memory_order_relaxed) > 0; }
  void Add(std::shared_ptr<const Launch> launch);
  void Attach(Sink* sink);
  // No Add touches the sink after this.
  void Detach(Sink* sink);

 private:
  std::atomic<int> listeners_{0};
  std::mutex mutex_;
  std::vector<Sink*> sinks_;
};

// Measures what is launched on `stream` while it lives. A failure loses the measurement, nothing else.
class ProfiledLaunch {
 public:
  ProfiledLaunch() = default;
  ProfiledLaunch(LaunchLog& log, const std::shared_ptr<device::Device>& device, void* stream, std::string node,
                 std::string kernel, int64_t rows);
  ~ProfiledLaunch();
  ProfiledLaunch(const ProfiledLaunch&) = delete;
  ProfiledLaunch& operator=(const ProfiledLaunch&) = delete;

 private:
  LaunchLog* log_ = nullptr;
  void* stream_ = nullptr;
  std::shared_ptr<Launch> launch_;
};

// A profiler that reads `log`; ONNX Runtime releases it.
OrtEpProfilerImpl* MakeProfiler(const Runtime& runtime, std::shared_ptr<LaunchLog> log,
                                std::shared_ptr<device::Device> device);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_PROFILER_H_
