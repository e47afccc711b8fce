#include "device/device.h"

#include <algorithm>
#include <cctype>
#include <cstring>

namespace mxort::device {
namespace {

constexpr size_t kPropertyBytes = 4096;  // room for a structure that grew
constexpr size_t kTextBytes = 256;

std::string TextAt(const char* properties, size_t offset) {
  return std::string(properties + offset, strnlen(properties + offset, kTextBytes));
}

template <class T>
T NumberAt(const char* properties, size_t offset) {
  T value;
  std::memcpy(&value, properties + offset, sizeof(value));
  return value;
}

Status Describe(const HipApi& hip, int ordinal, DeviceInfo* info) {
  std::vector<char> properties(kPropertyBytes);
  MXORT_RETURN_IF_ERROR(
      hip.Check(hip.hipGetDevicePropertiesR0600(properties.data(), ordinal), "hipGetDeviceProperties"));
  char bus_id[64] = {};
  MXORT_RETURN_IF_ERROR(hip.Check(hip.hipDeviceGetPCIBusId(bus_id, sizeof(bus_id), ordinal), "hipDeviceGetPCIBusId"));
  info->ordinal = ordinal;
  info->name = TextAt(properties.data(), abi::kName);
  const std::string features = TextAt(properties.data(), abi::kGcnArchName);  // "gfx950:sramecc+:xnack-"
  info->arch = features.substr(0, features.find(':'));
  info->pci_bus_id = bus_id;
  std::transform(info->pci_bus_id.begin(), info->pci_bus_id.end(), info->pci_bus_id.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  info->memory_bytes = NumberAt<size_t>(properties.data(), abi::kTotalGlobalMem);
  info->compute_units = NumberAt<int>(properties.data(), abi::kMultiProcessorCount);
  info->unsupported = WhyNoKernels(info->arch);
  return {};
}

std::string Where(const DeviceInfo& info) {
  return "GPU " + std::to_string(info.ordinal) + " (" + info.name + ", " + info.arch + ")";
}

}  // namespace

Status Devices(std::vector<DeviceInfo>* devices) {
  devices->clear();
  const HipApi* hip = nullptr;
  MXORT_RETURN_IF_ERROR(GetHip(&hip));
  int count = 0;
  const int error = hip->hipGetDeviceCount(&count);
  if (error == abi::kNoDevice) {
    (void)hip->hipGetLastError();
    return {};
  }
  MXORT_RETURN_IF_ERROR(hip->Check(error, "hipGetDeviceCount"));
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    DeviceInfo info;
    MXORT_RETURN_IF_ERROR(Describe(*hip, ordinal, &info));
    devices->push_back(std::move(info));
  }
  return {};
}

// ---- Device ---------------------------------------------------------------------------------------------------------

Status Device::Open(int ordinal, std::shared_ptr<Device>* device) {
  static auto& mutex = *new std::mutex;
  static auto& opened = *new std::map<int, std::weak_ptr<Device>>;
  const std::lock_guard<std::mutex> lock(mutex);
  if ((*device = opened[ordinal].lock())) return {};
  std::vector<DeviceInfo> devices;
  MXORT_RETURN_IF_ERROR(Devices(&devices));
  if (ordinal < 0 || static_cast<size_t>(ordinal) >= devices.size()) {
    return {ErrorCode::kInvalidArgument, "GPU: got ordinal " + std::to_string(ordinal) + ", expected one of the " +
                                             std::to_string(devices.size()) + " devices present"};
  }
  DeviceInfo& info = devices[static_cast<size_t>(ordinal)];
  if (!info.supported()) return {ErrorCode::kUnsupported, Where(info) + ": " + info.unsupported};
  const HipApi* hip = nullptr;
  MXORT_RETURN_IF_ERROR(GetHip(&hip));
  *device = std::shared_ptr<Device>(new Device(*hip, std::move(info)));
  opened[ordinal] = *device;
  return {};
}

Device::~Device() {
  const CurrentDevice current(hip_, ordinal());
  if (copy_stream_) (void)hip_.hipStreamDestroy(copy_stream_);
  for (const auto& events : events_) {
    for (void* event : events) (void)hip_.hipEventDestroy(event);
  }
  const CaptureGate::Pass pass(capture_gate_);
  for (const auto& [object, module] : modules_) (void)hip_.hipModuleUnload(module.handle);
}

Status Device::Memory(size_t* free_bytes, size_t* total_bytes) const {
  const CurrentDevice current(hip_, ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  return hip_.Check(hip_.hipMemGetInfo(free_bytes, total_bytes), "hipMemGetInfo");
}

Status Device::Synchronize() const {
  const CaptureGate::Pass pass(capture_gate_);
  if (!pass.granted()) {
    return {ErrorCode::kFailed, Where(info_) + ": cannot be waited for while this thread records a graph on it"};
  }
  const CurrentDevice current(hip_, ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  return hip_.Check(hip_.hipDeviceSynchronize(), "hipDeviceSynchronize");
}

Status Device::CopyStream(void** stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!copy_stream_) {
    const CurrentDevice current(hip_, ordinal());
    MXORT_RETURN_IF_ERROR(current.status());
    void* made = nullptr;
    MXORT_RETURN_IF_ERROR(hip_.Check(hip_.hipStreamCreateWithFlags(&made, abi::kStreamNonBlocking), "hipStreamCreate"));
    copy_stream_ = made;
  }
  *stream = copy_stream_;
  return {};
}

Status Device::LoadModule(const std::string& object, void** module) {
  Module& slot = modules_[object];
  if (!slot.handle) {
    MXORT_RETURN_IF_ERROR(FindCodeObject(object, info_.arch, &slot.bytes));
    const std::string what = "loading the code object " + object + " for " + info_.arch + ": hipModuleLoadData";
    void* loaded = nullptr;
    MXORT_RETURN_IF_ERROR(hip_.Check(hip_.hipModuleLoadData(&loaded, slot.bytes.data()), what.c_str()));
    slot.handle = loaded;
  }
  *module = slot.handle;
  return {};
}

Status Device::Kernel(const std::string& object, const std::string& name, void** function) {
  const std::lock_guard<std::mutex> lock(mutex_);
  void*& slot = functions_[{object, name}];
  if (!slot) {
    const CurrentDevice current(hip_, ordinal());
    MXORT_RETURN_IF_ERROR(current.status());
    void* module = nullptr;
    MXORT_RETURN_IF_ERROR(LoadModule(object, &module));
    const std::string what = "kernel " + name + " of " + object + ": hipModuleGetFunction";
    void* found = nullptr;
    MXORT_RETURN_IF_ERROR(hip_.Check(hip_.hipModuleGetFunction(&found, module, name.c_str()), what.c_str()));
    slot = found;
  }
  *function = slot;
  return {};
}

CurrentDevice::CurrentDevice(const HipApi& hip, int ordinal) : hip_(hip) {
  int current = -1;
  status_ = hip_.Check(hip_.hipGetDevice(&current), "hipGetDevice");
  if (!status_.ok() || current == ordinal) return;
  status_ = hip_.Check(hip_.hipSetDevice(ordinal), "hipSetDevice");
  if (status_.ok()) former_ = current;
}

CurrentDevice::~CurrentDevice() {
  if (former_ >= 0) (void)hip_.hipSetDevice(former_);
}

// ---- Stream, Event --------------------------------------------------------------------------------------------------

Status Stream::Create(const std::shared_ptr<Device>& device, std::unique_ptr<Stream>* stream) {
  const HipApi& hip = device->hip();
  const CurrentDevice current(hip, device->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  void* handle = nullptr;
  MXORT_RETURN_IF_ERROR(hip.Check(hip.hipStreamCreateWithFlags(&handle, abi::kStreamNonBlocking), "hipStreamCreate"));
  stream->reset(new Stream(device, handle));
  return {};
}

Stream::~Stream() {
  const HipApi& hip = device_->hip();
  const CurrentDevice current(hip, device_->ordinal());
  (void)hip.hipStreamSynchronize(handle_);
  (void)hip.hipStreamDestroy(handle_);
  (void)hip.hipGetLastError();
}

Status Stream::Synchronize() const {
  const HipApi& hip = device_->hip();
  const CurrentDevice current(hip, device_->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  return hip.Check(hip.hipStreamSynchronize(handle_), "hipStreamSynchronize");
}

Status Event::Create(const std::shared_ptr<Device>& device, bool timing, std::unique_ptr<Event>* event) {
  void* handle = nullptr;
  {
    const std::lock_guard<std::mutex> lock(device->mutex_);
    auto& kept = device->events_[timing];
    if (!kept.empty()) {
      handle = kept.back();
      kept.pop_back();
    }
  }
  if (!handle) {
    const HipApi& hip = device->hip();
    const CurrentDevice current(hip, device->ordinal());
    MXORT_RETURN_IF_ERROR(current.status());
    const unsigned flags = timing ? 0 : abi::kEventDisableTiming;
    MXORT_RETURN_IF_ERROR(hip.Check(hip.hipEventCreateWithFlags(&handle, flags), "hipEventCreate"));
  }
  event->reset(new Event(device, timing, handle));
  return {};
}

Event::~Event() {
  const std::lock_guard<std::mutex> lock(device_->mutex_);
  device_->events_[timing_].push_back(handle_);
}

Status Event::Record(void* stream) const {
  const HipApi& hip = device_->hip();
  const CurrentDevice current(hip, device_->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  return hip.Check(hip.hipEventRecord(handle_, stream), "hipEventRecord");
}

Status Event::WaitOn(void* stream) const {
  const HipApi& hip = device_->hip();
  return hip.Check(hip.hipStreamWaitEvent(stream, handle_, 0), "hipStreamWaitEvent");
}

Status Event::Synchronize() const {
  const HipApi& hip = device_->hip();
  return hip.Check(hip.hipEventSynchronize(handle_), "hipEventSynchronize");
}

Status Event::MillisecondsSince(const Event& start, float* milliseconds) const {
  const HipApi& hip = device_->hip();
  return hip.Check(hip.hipEventElapsedTime(milliseconds, start.handle_, handle_), "hipEventElapsedTime");
}

// ---- copies ---------------------------------------------------------------------------------------------------------

Status Copy(int to_device, void* to, int from_device, const void* from, size_t bytes, void* stream) {
  if (bytes == 0) return {};
  if (to_device == kHost && from_device == kHost) {
    std::memcpy(to, from, bytes);
    return {};
  }
  const HipApi* hip = nullptr;
  MXORT_RETURN_IF_ERROR(GetHip(&hip));
  const int ordinal = to_device == kHost ? from_device : to_device;
  std::shared_ptr<Device> own;  // of the stream, where the caller gives none
  void* copy_stream = stream;
  if (!stream) {
    MXORT_RETURN_IF_ERROR(Device::Open(ordinal, &own));
    MXORT_RETURN_IF_ERROR(own->CopyStream(&copy_stream));
  }
  const CurrentDevice current(*hip, ordinal);
  MXORT_RETURN_IF_ERROR(current.status());
  if (to_device != kHost && from_device != kHost && to_device != from_device) {
    MXORT_RETURN_IF_ERROR(hip->Check(hip->hipMemcpyPeerAsync(to, to_device, from, from_device, bytes, copy_stream),
                                     "hipMemcpyPeerAsync"));
  } else {
    const int kind = from_device == kHost ? abi::kHostToDevice
                     : to_device == kHost ? abi::kDeviceToHost
                                          : abi::kDeviceToDevice;
    MXORT_RETURN_IF_ERROR(hip->Check(hip->hipMemcpyAsync(to, from, bytes, kind, copy_stream), "hipMemcpyAsync"));
  }
  return stream ? Status() : hip->Check(hip->hipStreamSynchronize(copy_stream), "hipStreamSynchronize");
}

Status DeviceOfPointer(const void* pointer, int* ordinal) {
  const HipApi* hip = nullptr;
  MXORT_RETURN_IF_ERROR(GetHip(&hip));
  struct : abi::PointerAttributes {
    char room[64] = {};  // for a structure that grew
  } attributes;
  const int error = hip->hipPointerGetAttributes(&attributes, pointer);
  // Ordinary host memory is no error in HIP's newer documentation, and an invalid value in older runtimes.
  if (error != 0) (void)hip->hipGetLastError();
  *ordinal = error == 0 && attributes.type == abi::kMemoryTypeDevice ? attributes.device : kHost;
  return {};
}

}  // namespace mxort::device
