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
class GraphCapture {
 public:
  GraphCapture(std::shared_ptr<device::Device> device, std::shared_ptr<device::Stream> stream,
               std::shared_ptr<Memory> memory);
  ~GraphCapture();
  GraphCapture(const GraphCapture&) = delete;
  GraphCapture& operator=(const GraphCapture&) = delete;

  void RunStart(int id);
  // Ends a recording; then the work is done for the first time.
  void RunEnd(int id);
  // A kernel of the run being recorded failed: what is recorded is thrown away.
  void RunFailed();
  bool Captured(int id) const;
  void Replay(int id);
  void Release(int id);

  bool recording() const { return recording_; }
  const std::shared_ptr<device::Stream>& stream() const { return stream_; }

 private:
  struct Graph {
    int runs = 0;
    void* executable = nullptr;  // hipGraphExec_t
  };
  const std::shared_ptr<device::Device> device_;
  const std::shared_ptr<device::Stream> stream_;
  const std::shared_ptr<Memory> memory_;
  mutable std::mutex mutex_;
  std::map<int, Graph> graphs_;
  bool recording_ = false, failed_ = false;
};

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_GRAPH_H_
