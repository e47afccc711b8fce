// Graph capture: the launches of one run, recorded and replayed as a whole.
#ifndef MXORT_PROVIDER_GRAPH_H_
#define MXORT_PROVIDER_GRAPH_H_

#include <map>
#include <memory>
#include <mutex>

#include "device/device.h"
#include "provider/memory.h"

namespace mxort::provider {

// The captured graphs of a session, by the application's "gpu_graph_id". ONNX Runtime runs the model until Captured()
// says so: the first run allocates and packs as usual, the second is recorded. It lets no two runs overlap then. Inputs
// and outputs must be bound to device memory that stays where it is, as with every provider's graphs.
//
// A recording may be lost to another thread's call (device/capture_gate.h; within the process only to other
// libraries'). Nothing has been computed then, and ONNX Runtime runs the model again: that is recorded anew, and after
// a few losses left at an ordinary run, until recording is tried again some runs later.
class GraphCapture {
 public:
  GraphCapture(std::shared_ptr<device::Device> device, std::shared_ptr<device::Stream> stream,
               std::shared_ptr<Memory> memory);
  ~GraphCapture();
  GraphCapture(const GraphCapture&) = delete;
  GraphCapture& operator=(const GraphCapture&) = delete;

  void RunStart(int id);
  // Ends a recording; then the work is done for the first time. No error where the recording was lost.
  void RunEnd(int id);
  // A kernel of the run being recorded failed: what is recorded is thrown away. True: it failed because the recording
  // was lost, which is no error.
  bool RunFailed();
  // Whether ONNX Runtime shall replay instead of run. Asked once after each run too, whether that was enough: true once
  // after an ordinary run that stands for a lost recording.
  bool Captured(int id);
  void Replay(int id);
  void Release(int id);

  bool recording() const { return recording_; }
  const std::shared_ptr<device::Stream>& stream() const { return stream_; }

 private:
  struct Graph {
    int runs = 0;                // ordinary ones before the first recording
    int lost = 0;                // recordings, one after the other
    int pause = 0;               // ordinary runs until the next recording
    bool enough = false;         // the run was an ordinary one in place of a recording
    void* executable = nullptr;  // hipGraphExec_t
  };
  device::Status Finish(Graph& graph, void* recorded);
  device::Status Launch(void* executable);
  const std::shared_ptr<device::Device> device_;
  const std::shared_ptr<device::Stream> stream_;
  const std::shared_ptr<Memory> memory_;
  mutable std::mutex mutex_;
  std::map<int, Graph> graphs_;
  bool recording_ = false, failed_ = false;
};

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_GRAPH_H_
