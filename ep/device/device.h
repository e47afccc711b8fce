// GPUs: which there are, what they can do, their streams, events, copies and loaded kernels. Knows no ONNX Runtime.
//
// All functions may be called from any thread, and leave the calling thread's current HIP device as it was.
// Streams are hipStream_t as void*; null is HIP's default stream. Objects hold on to what they need: a device's code
// objects are unloaded when the last of Device, Arena, DeviceWeights, MatMulPlan, Stream and Event is gone.
#ifndef MXORT_DEVICE_DEVICE_H_
#define MXORT_DEVICE_DEVICE_H_

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "device/capture_gate.h"
#include "device/code_object.h"
#include "device/hip_api.h"
#include "device/status.h"
#include "kernels/hip/select.h"

namespace mxort::device {

struct DeviceInfo {
  int ordinal = 0;         // HIP's, after HIP_VISIBLE_DEVICES
  std::string name;        // "AMD Instinct MI355X"
  std::string arch;        // "gfx950", without the feature suffixes of gcnArchName
  std::string pci_bus_id;  // "0000:05:00.0", lower case: what ONNX Runtime's metadata "pci_bus_id" is matched with
  size_t memory_bytes = 0;
  int compute_units = 0;
  std::string unsupported;  // why mxort has no kernels for it, one line; empty: it has
  bool supported() const { return unsupported.empty(); }
};

// All GPUs that the HIP runtime shows, supported or not, by ordinal; none is no error. kUnavailable as GetHip.
Status Devices(std::vector<DeviceInfo>* devices);

// An opened GPU.
class Device : public std::enable_shared_from_this<Device> {
 public:
  // The process has at most one object of a device. kInvalidArgument: no such ordinal. kUnsupported: the architecture.
  static Status Open(int ordinal, std::shared_ptr<Device>* device);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const DeviceInfo& info() const { return info_; }
  int ordinal() const { return info_.ordinal; }
  const HipApi& hip() const { return hip_; }

  // Bytes as the driver counts them, of all processes.
  Status Memory(size_t* free_bytes, size_t* total_bytes) const;
  // Waits for everything on the device, and before that for a recording (CaptureGate) to end: an error where this
  // thread makes the recording. Reports what a kernel or copy did wrong since.
  Status Synchronize() const;
  CaptureGate& capture_gate() const { return capture_gate_; }
  // For copies that the caller waits for. Made at the first call.
  Status CopyStream(void** stream);

  // The kernel `name` of code object `object` (hip::CodeObject::name), loaded at the first call.
  // MXORT_CODE_OBJECTS=<folder>: <object>.<arch>.co there is loaded instead of what is embedded, if it exists.
  Status Kernel(const std::string& object, const std::string& name, void** function);

 private:
  Device(const HipApi& hip, DeviceInfo info) : hip_(hip), info_(std::move(info)) {}
  Status LoadModule(const std::string& object, void** module);

  friend class Event;
  struct Module {
    void* handle = nullptr;
    CodeObjectBytes bytes;  // HIP keeps the address, for debuggers
  };

  const HipApi& hip_;
  const DeviceInfo info_;
  mutable CaptureGate capture_gate_;
  std::mutex mutex_;
  void* copy_stream_ = nullptr;
  std::vector<void*> events_[2];                                    // not in use; with timing: [1]
  std::map<std::string, Module> modules_;                           // by object
  std::map<std::pair<std::string, std::string>, void*> functions_;  // by object and name
};

// Makes a device the calling thread's current one, and the former one again at the end. Needed around direct calls of
// HipApi only; everything in ep/device does it itself.
class CurrentDevice {
 public:
  CurrentDevice(const HipApi& hip, int ordinal);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  const Status& status() const { return status_; }

 private:
  const HipApi& hip_;
  int former_ = -1;  // -1: nothing to restore
  Status status_;
};

// A stream of one device. Non-blocking: not ordered with the default stream.
class Stream {
 public:
  static Status Create(const std::shared_ptr<Device>& device, std::unique_ptr<Stream>* stream);
  ~Stream();  // waits for its work
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  void* handle() const { return handle_; }  // hipStream_t
  Device& device() const { return *device_; }
  // Waits, and reports what went wrong on the device.
  Status Synchronize() const;

 private:
  Stream(std::shared_ptr<Device> device, void* handle) : device_(std::move(device)), handle_(handle) {}
  const std::shared_ptr<Device> device_;
  void* const handle_;
};

// A point in a stream. The device keeps events for reuse: making one costs microseconds.
class Event {
 public:
  // `timing`: for MillisecondsSince. Events without are cheaper.
  static Status Create(const std::shared_ptr<Device>& device, bool timing, std::unique_ptr<Event>* event);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void* handle() const { return handle_; }  // hipEvent_t
  Status Record(void* stream) const;
  // Lets `stream`, of any device, wait for the event; the calling thread does not wait.
  Status WaitOn(void* stream) const;
  // The calling thread waits.
  Status Synchronize() const;
  // Between two recorded and passed timing events, on the device's clock.
  Status MillisecondsSince(const Event& start, float* milliseconds) const;

 private:
  Event(std::shared_ptr<Device> device, bool timing, void* handle)
      : device_(std::move(device)), timing_(timing), handle_(handle) {}
  const std::shared_ptr<Device> device_;
  const bool timing_;
  void* const handle_;
};

inline constexpr int kHost = -1;

// Copies between host (kHost; pinned or not) and devices (ordinals), in any combination. With a stream the copy is
// enqueued, on a stream of either device; memory that is not pinned is read before the call returns, and written before
// it returns. Without a stream (null) the call waits until the copy is done, on a stream of its own: it does not wait
// for other streams, and ends no recording.
Status Copy(int to_device, void* to, int from_device, const void* from, size_t bytes, void* stream);

// The device whose memory a pointer is in, or kHost. ONNX Runtime hands an execution provider on one GPU the pointers
// of another GPU of the same vendor without a word.
Status DeviceOfPointer(const void* pointer, int* ordinal);

}  // namespace mxort::device

#endif  // MXORT_DEVICE_DEVICE_H_
