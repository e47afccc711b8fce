#include "provider/graph.h"

#include <string>
#include <utility>

#include "ops/device_status.h"

namespace mxort::provider {
namespace {

constexpr int kSkip = -1;                // the application's id for a run without graphs
constexpr int kRunsBeforeRecording = 1;  // they leave nothing to allocate or to load
constexpr int kCaptureRelaxed = 2;       // hipStreamCaptureModeRelaxed: allocating is allowed

}  // namespace

GraphCapture::GraphCapture(std::shared_ptr<device::Device> device, std::shared_ptr<device::Stream> stream,
                           std::shared_ptr<Memory> memory)
    : device_(std::move(device)), stream_(std::move(stream)), memory_(std::move(memory)) {}

GraphCapture::~GraphCapture() {
  const device::CurrentDevice current(device_->hip(), device_->ordinal());
  (void)stream_->Synchronize();  // a failure has been reported by the run that met it
  for (const auto& [id, graph] : graphs_) {
    if (graph.executable) device_->hip().hipGraphExecDestroy(graph.executable);
    memory_->ReleaseGraph(id);
  }
}

void GraphCapture::RunStart(int id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (id == kSkip) return;
  Graph& graph = graphs_[id];
  if (graph.executable || graph.runs++ < kRunsBeforeRecording) return;
  const device::HipApi& hip = device_->hip();
  const device::CurrentDevice current(hip, device_->ordinal());
  Check(current.status());
  Check(hip.Check(hip.hipStreamBeginCapture(stream_->handle(), kCaptureRelaxed), "begin of graph capture"));
  memory_->BeginGraph(id);
  recording_ = true;
  failed_ = false;
}

void GraphCapture::RunFailed() {
  const std::lock_guard<std::mutex> lock(mutex_);
  failed_ = recording_;
}

void GraphCapture::RunEnd(int id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!recording_) return;
  recording_ = false;
  memory_->EndGraph();
  const device::HipApi& hip = device_->hip();
  const device::CurrentDevice current(hip, device_->ordinal());
  void *recorded = nullptr, *executable = nullptr;
  device::Status status = hip.Check(hip.hipStreamEndCapture(stream_->handle(), &recorded), "end of graph capture");
  if (status.ok() && !failed_) {
    status = hip.Check(hip.hipGraphInstantiate(&executable, recorded, nullptr, nullptr, 0), "instantiation of a graph");
  }
  if (recorded) hip.hipGraphDestroy(recorded);
  if (executable) status = hip.Check(hip.hipGraphLaunch(executable, stream_->handle()), "launch of a graph");
  if (executable && status.ok()) status = stream_->Synchronize();
  if (executable && status.ok()) {
    graphs_[id].executable = executable;
    return;
  }
  if (executable) hip.hipGraphExecDestroy(executable);
  memory_->ReleaseGraph(id);
  Check(status);
}

bool GraphCapture::Captured(int id) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = graphs_.find(id);
  return it != graphs_.end() && it->second.executable;
}

void GraphCapture::Replay(int id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = graphs_.find(id);
  if (it == graphs_.end() || !it->second.executable) {
    throw std::invalid_argument("there is no captured graph " + std::to_string(id));
  }
  const device::HipApi& hip = device_->hip();
  const device::CurrentDevice current(hip, device_->ordinal());
  Check(current.status());
  Check(hip.Check(hip.hipGraphLaunch(it->second.executable, stream_->handle()), "launch of a graph"));
  Check(stream_->Synchronize());
}

void GraphCapture::Release(int id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = graphs_.find(id);
  if (it == graphs_.end()) return;
  const device::CurrentDevice current(device_->hip(), device_->ordinal());
  Check(stream_->Synchronize());
  if (it->second.executable) device_->hip().hipGraphExecDestroy(it->second.executable);
  graphs_.erase(it);
  memory_->ReleaseGraph(id);
}

}  // namespace mxort::provider
