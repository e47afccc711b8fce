#include "provider/graph.h"

#include <string>
#include <utility>

#include "ops/device_status.h"

namespace mxort::provider {
namespace {

constexpr int kSkip = -1;                // the application's id for a run without graphs
constexpr int kRunsBeforeRecording = 1;  // they leave nothing to allocate or to load
constexpr int kMostLost = 3;             // recordings in one call of Run, of the 8 runs that ONNX Runtime makes
constexpr int kPause = 16;               // ordinary runs after so many losses

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
  if (graph.pause > 0) {
    --graph.pause;
    graph.enough = true;
    return;
  }
  const device::HipApi& hip = device_->hip();
  const device::CurrentDevice current(hip, device_->ordinal());
  Check(current.status());
  device_->capture_gate().Close();
  const device::Status status =
      hip.Check(hip.hipStreamBeginCapture(stream_->handle(), device::abi::kCaptureRelaxed), "begin of graph capture");
  if (!status.ok()) device_->capture_gate().Open();
  Check(status);
  memory_->BeginGraph(id);
  recording_ = true;
  failed_ = false;
}

bool GraphCapture::RunFailed() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [_, graph] : graphs_) graph.enough = false;
  if (!recording_) return false;
  int status = 0;
  const device::CurrentDevice current(device_->hip(), device_->ordinal());
  const int error = device_->hip().hipStreamIsCapturing(stream_->handle(), &status);
  if (error == 0 && status == device::abi::kCaptureStatusInvalidated) return true;
  failed_ = true;
  return false;
}

void GraphCapture::RunEnd(int id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!recording_) return;
  recording_ = false;
  memory_->EndGraph();
  const device::HipApi& hip = device_->hip();
  const device::CurrentDevice current(hip, device_->ordinal());
  void* recorded = nullptr;
  const int error = hip.hipStreamEndCapture(stream_->handle(), &recorded);
  device_->capture_gate().Open();
  Graph& graph = graphs_[id];
  device::Status status = hip.Check(error, "end of graph capture");
  if (status.ok() && !failed_) status = Finish(graph, recorded);
  if (recorded) hip.hipGraphDestroy(recorded);
  if (graph.executable) return;
  memory_->ReleaseGraph(id);
  if (error != device::abi::kCaptureInvalidated) Check(status);
  if (++graph.lost < kMostLost) return;
  graph.lost = 0;
  graph.pause = kPause;
}

device::Status GraphCapture::Finish(Graph& graph, void* recorded) {
  const device::HipApi& hip = device_->hip();
  void* executable = nullptr;
  MXORT_RETURN_IF_ERROR(
      hip.Check(hip.hipGraphInstantiate(&executable, recorded, nullptr, nullptr, 0), "instantiation of a graph"));
  const device::Status status = Launch(executable);
  if (status.ok()) {
    graph.executable = executable;
  } else {
    hip.hipGraphExecDestroy(executable);
  }
  return status;
}

device::Status GraphCapture::Launch(void* executable) {
  const device::HipApi& hip = device_->hip();
  {
    const device::CaptureGate::Pass pass(device_->capture_gate());
    MXORT_RETURN_IF_ERROR(hip.Check(hip.hipGraphLaunch(executable, stream_->handle()), "launch of a graph"));
  }
  return stream_->Synchronize();
}

bool GraphCapture::Captured(int id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = graphs_.find(id);
  if (it == graphs_.end()) return false;
  return std::exchange(it->second.enough, false) || it->second.executable;
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
  Check(Launch(it->second.executable));
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
