#include "provider/factory.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "ops/custom_op.h"
#include "ops/device_status.h"
#include "provider/ep.h"
#include "provider/memory.h"
#include "provider/options.h"
#include "provider/stream.h"

namespace mxort::provider {
namespace {

struct HardwareDeviceDeleter {
  const OrtEpApi* ep;
  void operator()(OrtHardwareDevice* device) const { ep->ReleaseHardwareDevice(device); }
};
using HardwareDevicePtr = std::unique_ptr<OrtHardwareDevice, HardwareDeviceDeleter>;

std::string Lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

class Factory : public OrtEpFactory {
 public:
  Factory(const Runtime& runtime, const OrtApiBase* base, const OrtLogger* logger);

  // The library is unregistered. What sessions and tensors still use of it stays until they are gone.
  bool Close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    shared_.clear();
    return *live_ == 0;
  }

 private:
  // What serves a GPU outside of sessions: shared allocators and their streams. Made when first asked for.
  struct Shared {
    std::shared_ptr<device::Device> device;
    std::shared_ptr<Memory> memory, pinned;
  };

  void SetDeviceFunctions();
  void SetMemoryFunctions();
  void SetDomainFunctions(const OrtApiBase* base);
  void FindGpus();
  bool VirtualDevicesAllowed() const;
  bool IsHost(const OrtHardwareDevice* hardware) const {
    return runtime_.api->HardwareDevice_Type(hardware) == OrtHardwareDeviceType_CPU;
  }
  // The GPU that a hardware device is; null: none of ours.
  const Gpu* GpuOf(const OrtHardwareDevice* hardware) const;
  const OrtHardwareDevice* MakeVirtual(const Gpu& gpu);
  OrtEpDevice* MakeEpDevice(const Gpu& gpu, const OrtHardwareDevice* hardware);
  OrtEpDevice* MakeHostDevice(const OrtHardwareDevice* hardware);
  std::vector<OrtEpDevice*> Supported(const OrtHardwareDevice* const* hardware, size_t count, size_t most);
  OrtEp* MakeEp(const OrtHardwareDevice* const* hardware, size_t count, const OrtSessionOptions* session,
                const OrtLogger* logger);
  const Gpu& GpuAt(int ordinal) const;
  Shared SharedOf(int ordinal);
  int OrdinalOf(const OrtMemoryDevice* memory) const {
    return static_cast<int>(runtime_.ep->MemoryDevice_GetDeviceId(memory));
  }

  const Runtime runtime_;
  const Logger logger_;
  OrtCustomOpDomain* domain_ = nullptr;
  std::vector<std::unique_ptr<const Gpu>> gpus_;  // by ordinal, unsupported ones too
  std::map<const OrtHardwareDevice*, const Gpu*> virtual_gpus_;
  std::vector<HardwareDevicePtr> virtual_devices_;
  const LiveCount live_ = std::make_shared<std::atomic<int>>(0);
  std::mutex mutex_;
  std::map<int, Shared> shared_;
};

Factory& Self(OrtEpFactory* factory) { return *static_cast<Factory*>(factory); }

Factory::Factory(const Runtime& runtime, const OrtApiBase* base, const OrtLogger* logger)
    : OrtEpFactory{}, runtime_(runtime), logger_(runtime, logger) {
  ort_version_supported = runtime.version;
  GetName = [](const OrtEpFactory* self) noexcept { return static_cast<const Factory*>(self)->runtime_.name; };
  GetVendor = [](const OrtEpFactory*) noexcept { return "mxort"; };
  GetVendorId = [](const OrtEpFactory*) noexcept { return kVendorId; };
  GetVersion = [](const OrtEpFactory*) noexcept -> const char* { return MXORT_VERSION; };
  SetDeviceFunctions();
  SetMemoryFunctions();
  SetDomainFunctions(base);
  FindGpus();
}

void Factory::SetDeviceFunctions() {
  GetSupportedDevices = [](OrtEpFactory* self, const OrtHardwareDevice* const* hardware, size_t count,
                           OrtEpDevice** ep_devices, size_t most, size_t* found) noexcept -> OrtStatus* {
    Factory& factory = Self(self);
    *found = 0;
    return Guard(*factory.runtime_.api, kEpName, [&] {
      for (OrtEpDevice* device : factory.Supported(hardware, count, most)) ep_devices[(*found)++] = device;
    });
  };
  CreateEp = [](OrtEpFactory* self, const OrtHardwareDevice* const* hardware, const OrtKeyValuePairs* const*,
                size_t count, const OrtSessionOptions* options, const OrtLogger* logger,
                OrtEp** ep) noexcept -> OrtStatus* {
    Factory& factory = Self(self);
    return Guard(*factory.runtime_.api, kEpName, [&] { *ep = factory.MakeEp(hardware, count, options, logger); });
  };
  ReleaseEp = [](OrtEpFactory*, OrtEp* ep) noexcept { delete static_cast<OwnedEp*>(ep); };
  GetHardwareDeviceIncompatibilityDetails = [](OrtEpFactory* self, const OrtHardwareDevice* hardware,
                                               OrtDeviceEpIncompatibilityDetails* details) noexcept -> OrtStatus* {
    Factory& factory = Self(self);
    const Gpu* gpu = factory.GpuOf(hardware);
    if (factory.IsHost(hardware) || (gpu && gpu->info.supported())) return nullptr;
    return factory.runtime_.ep->DeviceEpIncompatibilityDetails_SetDetails(
        details, OrtDeviceEpIncompatibility_DEVICE_INCOMPATIBLE, 0,
        gpu ? gpu->info.unsupported.c_str() : "the HIP runtime does not list it");
  };
}

void Factory::SetMemoryFunctions() {
  CreateAllocator = [](OrtEpFactory* self, const OrtMemoryInfo* info, const OrtKeyValuePairs*,
                       OrtAllocator** allocator) noexcept -> OrtStatus* {
    Factory& factory = Self(self);
    const Runtime& runtime = factory.runtime_;
    return Guard(*runtime.api, kEpName, [&] {
      const OrtMemoryDevice* memory = runtime.ep->MemoryInfo_GetMemoryDevice(info);
      const bool pinned = runtime.ep->MemoryDevice_GetMemoryType(memory) == OrtDeviceMemoryType_HOST_ACCESSIBLE;
      const Gpu& gpu = factory.GpuAt(factory.OrdinalOf(memory));
      const Shared shared = factory.SharedOf(gpu.info.ordinal);
      *allocator = MakeAllocator(runtime, factory.logger_, pinned ? gpu.pinned.get() : gpu.memory.get(),
                                 pinned ? shared.pinned : shared.memory, factory.live_);
    });
  };
  ReleaseAllocator = [](OrtEpFactory*, OrtAllocator* allocator) noexcept { provider::ReleaseAllocator(allocator); };
  CreateDataTransfer = [](OrtEpFactory* self, OrtDataTransferImpl** transfer) noexcept -> OrtStatus* {
    const Runtime& runtime = Self(self).runtime_;
    return Guard(*runtime.api, kEpName, [&] { *transfer = MakeDataTransfer(runtime); });
  };
  IsStreamAware = [](const OrtEpFactory*) noexcept { return true; };
  CreateSyncStreamForDevice = [](OrtEpFactory* self, const OrtMemoryDevice* memory, const OrtKeyValuePairs*,
                                 OrtSyncStreamImpl** stream) noexcept -> OrtStatus* {
    Factory& factory = Self(self);
    return Guard(*factory.runtime_.api, kEpName, [&] {
      const Shared shared = factory.SharedOf(factory.OrdinalOf(memory));
      *stream = MakeSyncStream(factory.runtime_, shared.device, CreateStream(shared.device),
                               {shared.memory->arena(), shared.pinned->arena()});
    });
  };
}

// The operators for the CPU: their schema, and the kernels of the nodes that the provider does not take.
void Factory::SetDomainFunctions(const OrtApiBase* base) {
  const OrtApi* api = nullptr;
  domain_ = CustomOpDomain(base, &api);
  GetNumCustomOpDomains = [](OrtEpFactory*, size_t* count) noexcept -> OrtStatus* {
    *count = 1;
    return nullptr;
  };
  GetCustomOpDomains = [](OrtEpFactory* self, OrtCustomOpDomain** domains, size_t count) noexcept -> OrtStatus* {
    if (count > 0) domains[0] = Self(self).domain_;
    return nullptr;
  };
}

// No HIP runtime is no error: the library then offers no device, and its operators run on the CPU.
void Factory::FindGpus() {
  std::vector<device::DeviceInfo> found;
  const device::Status status = device::Devices(&found);
  if (!status.ok()) logger_.Log(ORT_LOGGING_LEVEL_INFO, "no GPU: " + status.message());
  for (const device::DeviceInfo& info : found) {
    auto gpu = std::make_unique<Gpu>();
    gpu->info = info;
    gpu->memory = MakeMemoryInfo(runtime_, info.ordinal, device::Arena::Kind::kDevice);
    gpu->pinned = MakeMemoryInfo(runtime_, info.ordinal, device::Arena::Kind::kPinned);
    gpus_.push_back(std::move(gpu));
  }
}

bool Factory::VirtualDevicesAllowed() const {
  OrtKeyValuePairs* entries = nullptr;
  runtime_.Check(runtime_.ep->GetEnvConfigEntries(&entries));
  const KeyValuePairsPtr owner(entries, KeyValuePairsDeleter{runtime_.api});
  const KeyValues values = ReadKeyValues(runtime_, entries);
  const auto it = values.find("allow_virtual_devices");
  return it != values.end() && it->second == "1";
}

const Gpu* Factory::GpuOf(const OrtHardwareDevice* hardware) const {
  const auto known = virtual_gpus_.find(hardware);
  if (known != virtual_gpus_.end()) return known->second;
  if (runtime_.api->HardwareDevice_Type(hardware) != OrtHardwareDeviceType_GPU ||
      runtime_.api->HardwareDevice_VendorId(hardware) != kVendorId) {
    return nullptr;
  }
  // Not by the product's number, which is the same for all GPUs of a machine, and not by order.
  const KeyValues metadata = ReadKeyValues(runtime_, runtime_.api->HardwareDevice_Metadata(hardware));
  const auto bus_id = metadata.find("pci_bus_id");
  if (bus_id == metadata.end()) return nullptr;
  for (const auto& gpu : gpus_) {
    if (gpu->info.pci_bus_id == Lower(bus_id->second)) return gpu.get();
  }
  return nullptr;
}

const OrtHardwareDevice* Factory::MakeVirtual(const Gpu& gpu) {
  OrtHardwareDevice* hardware = nullptr;
  const KeyValuePairsPtr metadata = MakeKeyValuePairs(
      runtime_, {{"is_virtual", "1"}, {"pci_bus_id", gpu.info.pci_bus_id}, {"Description", gpu.info.name}});
  runtime_.Check(runtime_.ep->CreateHardwareDevice(
      OrtHardwareDeviceType_GPU, kVendorId, static_cast<uint32_t>(gpu.info.ordinal), "AMD", metadata.get(), &hardware));
  virtual_devices_.emplace_back(hardware, HardwareDeviceDeleter{runtime_.ep});
  virtual_gpus_[hardware] = &gpu;
  return hardware;
}

OrtEpDevice* Factory::MakeEpDevice(const Gpu& gpu, const OrtHardwareDevice* hardware) {
  const KeyValuePairsPtr metadata = MakeKeyValuePairs(runtime_, {{"device_id", std::to_string(gpu.info.ordinal)},
                                                                 {"arch", gpu.info.arch},
                                                                 {"name", gpu.info.name},
                                                                 {"pci_bus_id", gpu.info.pci_bus_id}});
  OrtEpDevice* made = nullptr;
  runtime_.Check(runtime_.ep->CreateEpDevice(this, hardware, metadata.get(), nullptr, &made));
  OrtStatus* status = runtime_.ep->EpDevice_AddAllocatorInfo(made, gpu.memory.get());
  if (!status) status = runtime_.ep->EpDevice_AddAllocatorInfo(made, gpu.pinned.get());
  if (status) runtime_.ep->ReleaseEpDevice(made);
  runtime_.Check(status);
  return made;
}

OrtEpDevice* Factory::MakeHostDevice(const OrtHardwareDevice* hardware) {
  OrtEpDevice* made = nullptr;
  runtime_.Check(runtime_.ep->CreateEpDevice(this, hardware, nullptr, nullptr, &made));
  return made;
}

// GPUs first, for programs that take the first.
std::vector<OrtEpDevice*> Factory::Supported(const OrtHardwareDevice* const* hardware, size_t count, size_t most) {
  std::vector<const Gpu*> left;
  for (const auto& gpu : gpus_) {
    if (gpu->info.supported()) {
      left.push_back(gpu.get());
    } else {
      logger_.Log(ORT_LOGGING_LEVEL_INFO, gpu->info.name + " is not offered: " + gpu->info.unsupported);
    }
  }
  std::vector<std::pair<const Gpu*, const OrtHardwareDevice*>> pairs;
  for (size_t i = 0; i < count; ++i) {
    const auto it = std::find(left.begin(), left.end(), GpuOf(hardware[i]));
    if (it == left.end()) continue;
    pairs.emplace_back(*it, hardware[i]);
    left.erase(it);
  }
  if (VirtualDevicesAllowed()) {
    for (const Gpu* gpu : left) pairs.emplace_back(gpu, MakeVirtual(*gpu));
  }
  if (pairs.size() > most) {
    logger_.Log(ORT_LOGGING_LEVEL_WARNING,
                "onnxruntime takes " + std::to_string(most) + " of " + std::to_string(pairs.size()) + " GPUs");
    pairs.resize(most);
  }
  std::vector<OrtEpDevice*> devices;
  devices.reserve(pairs.size());
  for (const auto& [gpu, device] : pairs) devices.push_back(MakeEpDevice(*gpu, device));
  const auto* const host =
      std::find_if(hardware, hardware + count, [&](const OrtHardwareDevice* device) { return IsHost(device); });
  if (host != hardware + count && devices.size() < most) devices.push_back(MakeHostDevice(*host));
  return devices;
}

OrtEp* Factory::MakeEp(const OrtHardwareDevice* const* hardware, size_t count, const OrtSessionOptions* session,
                       const OrtLogger* logger) {
  OrtKeyValuePairs* entries = nullptr;
  runtime_.Check(runtime_.api->GetSessionOptionsConfigEntries(session, &entries));
  const KeyValuePairsPtr owner(entries, KeyValuePairsDeleter{runtime_.api});
  const KeyValues config = ReadKeyValues(runtime_, entries);
  Options options = ParseOptions(SelectOptions(config, runtime_.name));
  // A session that writes a compiled model wants a node for every fusion, in a form that we have none of.
  const auto context = config.find("ep.context_enable");
  if (context != config.end() && context->second == "1") options.fusion = false;
  std::string offered;
  bool host = false;
  for (size_t i = 0; i < count; ++i) {
    const Gpu* gpu = GpuOf(hardware[i]);
    host |= IsHost(hardware[i]);
    if (!gpu) continue;
    if (!options.device_id || *options.device_id == gpu->info.ordinal) {
      const Shared shared = SharedOf(gpu->info.ordinal);
      return new Ep(runtime_, Logger(runtime_, logger), *gpu, shared.device, shared.pinned, options, live_);
    }
    offered += (offered.empty() ? "" : " or ") + std::to_string(gpu->info.ordinal);
  }
  if (offered.empty() && host) return new HostEp(runtime_, live_);
  if (offered.empty()) throw std::invalid_argument("got no device that it offered, expected one");
  throw std::invalid_argument("provider option device_id: got '" + std::to_string(*options.device_id) + "', expected " +
                              offered + " (of the devices that the session was given)");
}

const Gpu& Factory::GpuAt(int ordinal) const {
  for (const auto& gpu : gpus_) {
    if (gpu->info.ordinal == ordinal) return *gpu;
  }
  throw std::invalid_argument("memory: got GPU " + std::to_string(ordinal) + ", expected one of " +
                              std::to_string(gpus_.size()));
}

Factory::Shared Factory::SharedOf(int ordinal) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Shared& shared = shared_[ordinal];
  if (!shared.device) {
    std::shared_ptr<device::Device> device;
    Check(device::Device::Open(ordinal, &device));
    shared.memory = std::make_shared<Memory>(device::Arena::Create(device));
    shared.pinned = std::make_shared<Memory>(device::Arena::Create(device, 0, device::Arena::Kind::kPinned));
    shared.device = std::move(device);
  }
  return shared;
}

}  // namespace

OrtEpFactory* MakeFactory(const Runtime& runtime, const OrtApiBase* base, const OrtLogger* logger) {
  return new Factory(runtime, base, logger);
}

// An application may unregister the library while sessions or tensors are alive. ONNX Runtime then calls the factory it
// has released when they go, so such a factory is kept for the rest of the process.
void ReleaseFactory(OrtEpFactory* factory) {
  static auto& mutex = *new std::mutex;
  static auto& kept = *new std::vector<OrtEpFactory*>;
  auto* const released = static_cast<Factory*>(factory);
  if (released->Close()) {
    delete released;
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex);
  kept.push_back(released);
}

}  // namespace mxort::provider
