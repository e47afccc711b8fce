#include "provider/profiler.h"

#include <algorithm>
#include <array>
#include <utility>

#include "ops/device_status.h"

namespace mxort::provider {
namespace {

struct Profiler : OrtEpProfilerImpl {
  Profiler(const Runtime& loaded, std::shared_ptr<LaunchLog> its_log, std::shared_ptr<device::Device> its_device)
      : OrtEpProfilerImpl{}, runtime(loaded), log(std::move(its_log)), device(std::move(its_device)) {
    ort_version_supported = runtime.version;
    Release = [](OrtEpProfilerImpl* self) noexcept {
      auto* profiler = static_cast<Profiler*>(self);
      profiler->log->Detach(&profiler->launches);
      delete profiler;
    };
    StartProfiling = [](OrtEpProfilerImpl* self, int64_t offset_ns) noexcept -> OrtStatus* {
      auto& profiler = *static_cast<Profiler*>(self);
      return Guard(*profiler.runtime.api, kEpName, [&] { profiler.Start(offset_ns); });
    };
    EndProfiling = [](OrtEpProfilerImpl* self, OrtProfilingEventsContainer* container) noexcept -> OrtStatus* {
      auto& profiler = *static_cast<Profiler*>(self);
      return Guard(*profiler.runtime.api, kEpName, [&] { profiler.End(container); });
    };
  }

  void Start(int64_t offset_ns) {
    start_us = offset_ns / 1000;
    Check(device::Stream::Create(device, &stream));
    Check(device::Event::Create(device, /*timing=*/true, &start));
    Check(start->Record(stream->handle()));
    Check(start->Synchronize());  // the device's clock and the host's meet here
    log->Attach(&launches);
  }

  void End(OrtProfilingEventsContainer* container) {
    log->Detach(&launches);
    for (const auto& launch : launches) Report(*launch, container);
    launches.clear();
    start.reset();
    stream.reset();
  }

  void Report(const Launch& launch, OrtProfilingEventsContainer* container) const {
    float begin_ms = 0, duration_ms = 0;
    Check(launch.end->Synchronize());
    Check(launch.begin->MillisecondsSince(*start, &begin_ms));
    Check(launch.end->MillisecondsSince(*launch.begin, &duration_ms));
    const std::string rows = std::to_string(launch.rows);
    const std::array<const char*, 4> names = {"provider", "kernel", "rows", "node"};
    const std::array<const char*, 4> values = {kEpName, launch.kernel.c_str(), rows.c_str(), launch.node.c_str()};
    OrtProfilingEvent* event = nullptr;
    runtime.Check(runtime.ep->CreateProfilingEvent(OrtProfilingEventCategory_KERNEL, -1, -1, launch.kernel.c_str(),
                                                   start_us + static_cast<int64_t>(begin_ms * 1000),
                                                   static_cast<int64_t>(duration_ms * 1000), names.data(),
                                                   values.data(), names.size(), &event));
    const OrtProfilingEvent* const added = event;
    OrtStatus* status = runtime.ep->ProfilingEventsContainer_AddEvents(container, &added, 1);
    runtime.ep->ReleaseProfilingEvent(event);
    runtime.Check(status);
  }

  const Runtime runtime;
  const std::shared_ptr<LaunchLog> log;
  const std::shared_ptr<device::Device> device;
  int64_t start_us = 0;
  std::unique_ptr<device::Stream> stream;
  std::unique_ptr<device::Event> start;
  LaunchLog::Sink launches;
};

}  // namespace

void LaunchLog::Add(std::shared_ptr<const Launch> launch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Sink* sink : sinks_) sink->push_back(launch);
}

void LaunchLog::Attach(Sink* sink) {
  const std::lock_guard<std::mutex> lock(mutex_);
  sinks_.push_back(sink);
  ++listeners_;
}

void LaunchLog::Detach(Sink* sink) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = std::find(sinks_.begin(), sinks_.end(), sink);
  if (it == sinks_.end()) return;
  sinks_.erase(it);
  --listeners_;
}

ProfiledLaunch::ProfiledLaunch(LaunchLog& log, const std::shared_ptr<device::Device>& device, void* stream,
                               std::string node, std::string kernel, int64_t rows)
    : stream_(stream), launch_(std::make_shared<Launch>()) {
  launch_->node = std::move(node);
  launch_->kernel = std::move(kernel);
  launch_->rows = rows;
  if (device::Event::Create(device, /*timing=*/true, &launch_->begin).ok() &&
      device::Event::Create(device, /*timing=*/true, &launch_->end).ok() && launch_->begin->Record(stream).ok()) {
    log_ = &log;
  }
}

ProfiledLaunch::~ProfiledLaunch() {
  if (log_ && launch_->end->Record(stream_).ok()) log_->Add(std::move(launch_));
}

OrtEpProfilerImpl* MakeProfiler(const Runtime& runtime, std::shared_ptr<LaunchLog> log,
                                std::shared_ptr<device::Device> device) {
  return new Profiler(runtime, std::move(log), std::move(device));
}

}  // namespace mxort::provider
