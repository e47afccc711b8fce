// A second execution provider on AMD memory, standing for MIGraphX's: vendor 0x1002, device memory and streams of the
// same HIP runtime, its own allocator and data transfer. It claims float Add, Mul and Relu and runs them on the device,
// so that a test sees whether ONNX Runtime puts copies between its nodes and those of libmxort.so.
//
// TOY_EP_HIP is the HIP runtime, TOY_EP_KERNELS the code object of toy_kernels.hip. One device: number 0.
#define ORT_API_MANUAL_INIT
#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define TOY_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr const char* kName = "ToyExecutionProvider";
constexpr uint32_t kVendor = 0x1002;

// ---- HIP
// -------------------------------------------------------------------------------------------------------------
using Stream = void*;

struct Hip {
  int (*Malloc)(void**, size_t);
  int (*Free)(void*);
  int (*MemcpyAsync)(void*, const void*, size_t, int kind, Stream);
  int (*StreamCreate)(Stream*);
  int (*StreamDestroy)(Stream);
  int (*StreamSynchronize)(Stream);
  int (*StreamWaitEvent)(Stream, void* event, unsigned flags);
  int (*EventCreate)(void**);
  int (*EventRecord)(void*, Stream);
  int (*EventSynchronize)(void*);
  int (*EventDestroy)(void*);
  int (*ModuleLoadData)(void**, const void*);
  int (*ModuleUnload)(void*);
  int (*ModuleGetFunction)(void**, void* module, const char*);
  int (*ModuleLaunchKernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared, Stream,
                            void** parameters, void** extra);
};

const Hip& GetHip() {
  static const Hip hip = [] {
    const char* path = std::getenv("TOY_EP_HIP");
    void* library = dlopen(path ? path : "libamdhip64.so.7", RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    Hip h;
    const auto find = [&](auto& function, const char* name) {
      void* p = dlsym(library, name);
      if (!p) throw std::runtime_error(std::string("no ") + name);
      std::memcpy(&function, &p, sizeof p);
    };
    find(h.Malloc, "hipMalloc");
    find(h.Free, "hipFree");
    find(h.MemcpyAsync, "hipMemcpyAsync");
    find(h.StreamCreate, "hipStreamCreate");
    find(h.StreamDestroy, "hipStreamDestroy");
    find(h.StreamSynchronize, "hipStreamSynchronize");
    find(h.StreamWaitEvent, "hipStreamWaitEvent");
    find(h.EventCreate, "hipEventCreate");
    find(h.EventRecord, "hipEventRecord");
    find(h.EventSynchronize, "hipEventSynchronize");
    find(h.EventDestroy, "hipEventDestroy");
    find(h.ModuleLoadData, "hipModuleLoadData");
    find(h.ModuleUnload, "hipModuleUnload");
    find(h.ModuleGetFunction, "hipModuleGetFunction");
    find(h.ModuleLaunchKernel, "hipModuleLaunchKernel");
    return h;
  }();
  return hip;
}

void Check(int error, const char* what) {
  if (error) throw std::runtime_error(std::string("toy: ") + what + ": HIP error " + std::to_string(error));
}

// ---- C callbacks
// -----------------------------------------------------------------------------------------------------
template <class Body>
OrtStatus* Guard(const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& e) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, e.what());
  }
}

// ---- memory
// ----------------------------------------------------------------------------------------------------------
Ort::MemoryInfo MakeMemoryInfo() {
  return {"Toy", OrtMemoryInfoDeviceType_GPU, kVendor, 0, OrtDeviceMemoryType_DEFAULT, 0, OrtDeviceAllocator};
}

struct Allocator : OrtAllocator {
  const Ort::MemoryInfo info = MakeMemoryInfo();
  Allocator() : OrtAllocator{} {
    version = ORT_API_VERSION;
    Alloc = [](OrtAllocator*, size_t size) -> void* {
      void* p = nullptr;
      return GetHip().Malloc(&p, size) ? nullptr : p;
    };
    Reserve = Alloc;
    Free = [](OrtAllocator*, void* p) { GetHip().Free(p); };
    Info = [](const OrtAllocator* self) -> const OrtMemoryInfo* { return static_cast<const Allocator*>(self)->info; };
  }
};

struct DataTransfer : OrtDataTransferImpl {
  DataTransfer() : OrtDataTransferImpl{} {
    ort_version_supported = ORT_API_VERSION;
    Release = [](OrtDataTransferImpl* self) noexcept { delete static_cast<DataTransfer*>(self); };
    CanCopy = [](const OrtDataTransferImpl*, const OrtMemoryDevice* from, const OrtMemoryDevice* to) noexcept {
      return (Ours(from) && (Ours(to) || IsCpu(to))) || (IsCpu(from) && Ours(to));
    };
    CopyTensors = [](OrtDataTransferImpl*, const OrtValue** from, OrtValue** to, OrtSyncStream** streams,
                     size_t n) noexcept {
      return Guard([&] {
        for (size_t i = 0; i < n; ++i) Copy(from[i], to[i], streams ? streams[i] : nullptr);
      });
    };
  }

  static bool Ours(const OrtMemoryDevice* device) {
    const OrtEpApi& api = Ort::GetEpApi();
    return api.MemoryDevice_GetDeviceType(device) == OrtMemoryInfoDeviceType_GPU &&
           api.MemoryDevice_GetVendorId(device) == kVendor && api.MemoryDevice_GetDeviceId(device) == 0;
  }
  static bool IsCpu(const OrtMemoryDevice* device) {
    return Ort::GetEpApi().MemoryDevice_GetDeviceType(device) == OrtMemoryInfoDeviceType_CPU;
  }
  static void Copy(const OrtValue* from, OrtValue* to, OrtSyncStream* stream) {
    const OrtEpApi& api = Ort::GetEpApi();
    const bool from_device = Ours(api.Value_GetMemoryDevice(from)), to_device = Ours(api.Value_GetMemoryDevice(to));
    const int kind = from_device ? (to_device ? 3 : 2) : 1;
    const Ort::ConstValue source(from);
    Stream handle = stream ? Ort::GetApi().SyncStream_GetHandle(stream) : nullptr;
    Check(GetHip().MemcpyAsync(Ort::UnownedValue(to).GetTensorMutableRawData(), source.GetTensorRawData(),
                               source.GetTensorSizeInBytes(), kind, handle),
          "copy");
    if (!stream || !to_device) Check(GetHip().StreamSynchronize(handle), "copy");
  }
};

// ---- streams
// ---------------------------------------------------------------------------------------------------------
struct Notification : OrtSyncNotificationImpl {
  Stream stream;
  void* event = nullptr;
  explicit Notification(Stream s) : OrtSyncNotificationImpl{}, stream(s) {
    Check(GetHip().EventCreate(&event), "hipEventCreate");
    ort_version_supported = ORT_API_VERSION;
    Release = [](OrtSyncNotificationImpl* self) noexcept { delete static_cast<Notification*>(self); };
    Activate = [](OrtSyncNotificationImpl* self) noexcept {
      auto* n = static_cast<Notification*>(self);
      return Guard([&] { Check(GetHip().EventRecord(n->event, n->stream), "hipEventRecord"); });
    };
    WaitOnDevice = [](OrtSyncNotificationImpl* self, OrtSyncStream* consumer) noexcept {
      auto* n = static_cast<Notification*>(self);
      return Guard([&] {
        Check(GetHip().StreamWaitEvent(Ort::GetApi().SyncStream_GetHandle(consumer), n->event, 0),
              "hipStreamWaitEvent");
      });
    };
    WaitOnHost = [](OrtSyncNotificationImpl* self) noexcept {
      auto* n = static_cast<Notification*>(self);
      return Guard([&] { Check(GetHip().EventSynchronize(n->event), "hipEventSynchronize"); });
    };
  }
  ~Notification() { GetHip().EventDestroy(event); }
};

struct SyncStream : OrtSyncStreamImpl {
  Stream handle = nullptr;
  SyncStream() : OrtSyncStreamImpl{} {
    Check(GetHip().StreamCreate(&handle), "hipStreamCreate");
    ort_version_supported = ORT_API_VERSION;
    Release = [](OrtSyncStreamImpl* self) noexcept { delete static_cast<SyncStream*>(self); };
    GetHandle = [](OrtSyncStreamImpl* self) noexcept { return static_cast<SyncStream*>(self)->handle; };
    CreateNotification = [](OrtSyncStreamImpl* self, OrtSyncNotificationImpl** out) noexcept {
      return Guard([&] { *out = new Notification(static_cast<SyncStream*>(self)->handle); });
    };
    Flush = [](OrtSyncStreamImpl* self) noexcept {
      return Guard([&] { Check(GetHip().StreamSynchronize(static_cast<SyncStream*>(self)->handle), "Flush"); });
    };
    OnSessionRunEnd = [](OrtSyncStreamImpl*) noexcept -> OrtStatus* { return nullptr; };
  }
  ~SyncStream() { GetHip().StreamDestroy(handle); }
};

// ---- kernels
// ---------------------------------------------------------------------------------------------------------
struct Arguments {  // of toy_kernels.hip
  const void *a, *b;
  void* y;
  unsigned columns;
};

struct Kernel : OrtKernelImpl {
  void* module = nullptr;
  void* function = nullptr;

  explicit Kernel(const char* name) : OrtKernelImpl{} {
    const char* path = std::getenv("TOY_EP_KERNELS");
    std::ifstream file(path ? path : "", std::ios::binary);
    const std::vector<char> image{std::istreambuf_iterator<char>(file), {}};
    if (image.empty()) throw std::runtime_error("toy: TOY_EP_KERNELS names no code object");
    Check(GetHip().ModuleLoadData(&module, image.data()), "hipModuleLoadData");
    Check(GetHip().ModuleGetFunction(&function, module, name), "hipModuleGetFunction");
    ort_version_supported = ORT_API_VERSION;
    Release = [](OrtKernelImpl* self) noexcept { delete static_cast<Kernel*>(self); };
    Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept {
      return Guard([&] { static_cast<Kernel*>(self)->Run(Ort::KernelContext(context)); });
    };
  }
  ~Kernel() { GetHip().ModuleUnload(module); }

  // Y of A's shape; B is a scalar, a trailing part of A's shape, or absent.
  void Run(const Ort::KernelContext& context) const {
    const Ort::ConstValue a = context.GetInput(0), b = context.GetInput(context.GetInputCount() - 1);
    const auto info = a.GetTensorTypeAndShapeInfo();
    const size_t n = info.GetElementCount(), n_b = b.GetTensorTypeAndShapeInfo().GetElementCount();
    if (n > 0 && (n_b == 0 || n % n_b)) throw std::runtime_error("toy: the second input must broadcast to the first");
    Arguments arguments{a.GetTensorRawData(), b.GetTensorRawData(),
                        context.GetOutput(0, info.GetShape()).GetTensorMutableRawData(), static_cast<unsigned>(n_b)};
    if (n == 0) return;
    size_t bytes = sizeof arguments;
    void* extra[] = {reinterpret_cast<void*>(1), &arguments, reinterpret_cast<void*>(2), &bytes,
                     reinterpret_cast<void*>(3)};
    const auto groups = static_cast<unsigned>((n_b + 255) / 256), rows = static_cast<unsigned>(n / n_b);
    Check(GetHip().ModuleLaunchKernel(function, groups, rows, 1, 256, 1, 1, 0, context.GetGPUComputeStream(), nullptr,
                                      extra),
          "launch");
  }
};

struct Op {
  const char *type, *kernel;
};
constexpr Op kOps[] = {{"Add", "toy_add"}, {"Mul", "toy_mul"}, {"Relu", "toy_relu"}};

// ---- the provider
// ----------------------------------------------------------------------------------------------------
struct Provider : OrtEp {
  Ort::KernelRegistry registry;

  Provider() : OrtEp{} {
    const OrtDataType* real = nullptr;
    Ort::ThrowOnError(Ort::GetEpApi().GetTensorDataType(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &real));
    for (const Op& op : kOps) {
      Ort::KernelDefBuilder builder;
      builder.SetOperatorType(op.type).SetDomain("").SetSinceVersion(6, 99).SetExecutionProvider(kName);
      const Ort::KernelDef definition = builder.AddTypeConstraint("T", real).Build();
      const auto create = [](void* state, const OrtKernelInfo*, OrtKernelImpl** out) noexcept {
        return Guard([&] { *out = new Kernel(static_cast<const Op*>(state)->kernel); });
      };
      const Ort::Status status = registry.AddKernel(definition, create, const_cast<Op*>(&op));
      if (!status.IsOK()) throw std::runtime_error(status.GetErrorMessage());
    }
    AddCopy("MemcpyFromHost", 0, true);
    AddCopy("MemcpyToHost", 0, false);
    ort_version_supported = ORT_API_VERSION;
    GetName = [](const OrtEp*) noexcept { return kName; };
    GetCapability = [](OrtEp*, const OrtGraph* graph, OrtEpGraphSupportInfo* support) noexcept {
      return Guard([&] {
        for (const Ort::ConstNode& node : Ort::ConstGraph(graph).GetNodes()) {
          if (!node.GetEpName().empty()) continue;
          const OrtKernelDef* found = nullptr;
          Ort::ThrowOnError(Ort::GetEpApi().EpGraphSupportInfo_LookUpKernel(support, node, &found));
          if (found) Ort::ThrowOnError(Ort::GetEpApi().EpGraphSupportInfo_AddSingleNode(support, node));
        }
      });
    };
    GetKernelRegistry = [](OrtEp* self, const OrtKernelRegistry** out) noexcept -> OrtStatus* {
      *out = static_cast<Provider*>(self)->registry;
      return nullptr;
    };
  }

  // What ONNX Runtime puts between a node of the CPU and one of ours.
  struct CopyKernel : OrtKernelImpl {
    CopyKernel() : OrtKernelImpl{} {
      ort_version_supported = ORT_API_VERSION;
      Release = [](OrtKernelImpl* self) noexcept { delete static_cast<CopyKernel*>(self); };
      Compute = [](OrtKernelImpl*, OrtKernelContext* raw) noexcept {
        return Guard([&] {
          const Ort::KernelContext context(raw);
          const Ort::ConstValue source = context.GetInput(0);
          Ort::UnownedValue target = context.GetOutput(0, source.GetTensorTypeAndShapeInfo().GetShape());
          DataTransfer::Copy(source, target, nullptr);
        });
      };
    }
  };
  void AddCopy(const char* type, size_t host, bool input) {
    Ort::KernelDefBuilder builder;
    builder.SetOperatorType(type).SetDomain("").SetSinceVersion(1, 99).SetExecutionProvider(kName);
    if (input) {
      builder.SetInputMemType(host, OrtMemTypeCPUInput);
    } else {
      builder.SetOutputMemType(host, OrtMemTypeCPUOutput);
    }
    const auto create = [](void*, const OrtKernelInfo*, OrtKernelImpl** out) noexcept {
      return Guard([&] { *out = new CopyKernel; });
    };
    const Ort::Status status = registry.AddKernel(builder.Build(), create, nullptr);
    if (!status.IsOK()) throw std::runtime_error(status.GetErrorMessage());
  }
};

struct Factory : OrtEpFactory {
  const Ort::MemoryInfo info = MakeMemoryInfo();  // ONNX Runtime keeps a pointer to it
  OrtHardwareDevice* device = nullptr;

  Factory() : OrtEpFactory{} {
    ort_version_supported = ORT_API_VERSION;
    GetName = [](const OrtEpFactory*) noexcept { return kName; };
    GetVendor = [](const OrtEpFactory*) noexcept { return "Toys"; };
    GetVendorId = [](const OrtEpFactory*) noexcept { return kVendor; };
    GetVersion = [](const OrtEpFactory*) noexcept { return "0.0.1"; };
    GetSupportedDevices = [](OrtEpFactory* self, const OrtHardwareDevice* const*, size_t, OrtEpDevice** out, size_t,
                             size_t* count) noexcept {
      return Guard([&] {
        auto* factory = static_cast<Factory*>(self);
        const OrtEpApi& api = Ort::GetEpApi();
        Ort::ThrowOnError(
            api.CreateHardwareDevice(OrtHardwareDeviceType_GPU, kVendor, 0, "Toys", nullptr, &factory->device));
        Ort::ThrowOnError(api.CreateEpDevice(self, factory->device, nullptr, nullptr, &out[0]));
        Ort::ThrowOnError(api.EpDevice_AddAllocatorInfo(out[0], factory->info));
        *count = 1;
      });
    };
    CreateEp = [](OrtEpFactory*, const OrtHardwareDevice* const*, const OrtKeyValuePairs* const*, size_t,
                  const OrtSessionOptions*, const OrtLogger*,
                  OrtEp** out) noexcept { return Guard([&] { *out = new Provider; }); };
    ReleaseEp = [](OrtEpFactory*, OrtEp* ep) noexcept { delete static_cast<Provider*>(ep); };
    CreateAllocator = [](OrtEpFactory*, const OrtMemoryInfo*, const OrtKeyValuePairs*, OrtAllocator** out) noexcept {
      return Guard([&] { *out = new Allocator; });
    };
    ReleaseAllocator = [](OrtEpFactory*, OrtAllocator* a) noexcept { delete static_cast<Allocator*>(a); };
    CreateDataTransfer = [](OrtEpFactory*, OrtDataTransferImpl** out) noexcept {
      return Guard([&] { *out = new DataTransfer; });
    };
    IsStreamAware = [](const OrtEpFactory*) noexcept { return true; };
    CreateSyncStreamForDevice = [](OrtEpFactory*, const OrtMemoryDevice*, const OrtKeyValuePairs*,
                                   OrtSyncStreamImpl** out) noexcept { return Guard([&] { *out = new SyncStream; }); };
  }
  ~Factory() {
    if (device) Ort::GetEpApi().ReleaseHardwareDevice(device);
  }
};

}  // namespace

TOY_EXPORT OrtStatus* CreateEpFactories(const char*, const OrtApiBase* base, const OrtLogger*, OrtEpFactory** factories,
                                        size_t, size_t* count) noexcept {
  Ort::InitApi(base->GetApi(ORT_API_VERSION));
  return Guard([&] {
    factories[0] = new Factory;
    *count = 1;
  });
}

TOY_EXPORT OrtStatus* ReleaseEpFactory(OrtEpFactory* factory) noexcept {
  delete static_cast<Factory*>(factory);
  return nullptr;
}
