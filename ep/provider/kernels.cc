#include "provider/kernels.h"

#include <mutex>
#include <utility>
#include <vector>

#include "device/matmul_plan.h"
#include "ops/custom_op_base.h"
#include "ops/device_status.h"
#include "ops/matmul_inputs.h"
#include "ops/matmul_spec.h"
#include "provider/ep.h"
#include "provider/memory.h"

namespace mxort::provider {
namespace {

void* StreamOf(const Runtime& runtime, const OrtKernelContext* context) {
  void* stream = nullptr;
  runtime.Check(runtime.api->KernelContext_GetGPUComputeStream(context, &stream));
  return stream;
}

// ---- MatMulMXFP4 ----------------------------------------------------------------------------------------------------

// The weights are inputs on the host (SetInputMemType): nothing but what the kernel packs goes to the device. They are
// packed when the kernel is created, where all five inputs can be read together, and PrePackWeight then only tells ONNX
// Runtime that it may free them. Constants of an outer graph (If, Loop) cannot be read at creation: they are packed in
// the first run.
class MatMulKernel : public OrtKernelImpl {
 public:
  MatMulKernel(Ep& ep, const OrtKernelInfo* info)
      : OrtKernelImpl{},
        ep_(ep),
        runtime_(ep.runtime()),
        where_(std::string(kMatMulName) + " '" + NodeName(*runtime_.api, info) + "'"),
        spec_(CheckAttributes(ReadAttributes(KernelAttributes(*runtime_.api, info), Mxfp4Operator()))),
        type_(TypeOf(info)) {
    ort_version_supported = runtime_.version;
    Release = [](OrtKernelImpl* self) noexcept { delete static_cast<MatMulKernel*>(self); };
    Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
      auto& kernel = *static_cast<MatMulKernel*>(self);
      OrtStatus* status = Guard(*kernel.runtime_.api, kernel.where_, [&] { kernel.Run(context); });
      if (!status || !kernel.ep_.RunFailed()) return status;
      kernel.runtime_.api->ReleaseStatus(status);
      return nullptr;
    };
    PrePackWeight = [](OrtKernelImpl* self, const OrtValue*, int input, OrtAllocator*, OrtSharedPrePackedWeightCache*,
                       bool* is_packed) noexcept -> OrtStatus* {
      *is_packed = input != kA && static_cast<MatMulKernel*>(self)->plan_ != nullptr;
      return nullptr;
    };
    const Inputs inputs = ReadConstants(*runtime_.api, spec_, info);
    if (AllPresent(inputs)) Pack(inputs);
  }

  const std::string& where() const { return where_; }

 private:
  DataType TypeOf(const OrtKernelInfo* info) const {
    OrtTypeInfo* type = nullptr;
    runtime_.Check(runtime_.api->KernelInfo_GetInputTypeInfo(info, kA, &type));
    const std::unique_ptr<OrtTypeInfo, decltype(runtime_.api->ReleaseTypeInfo)> owner(type,
                                                                                      runtime_.api->ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    ONNXTensorElementDataType element;
    runtime_.Check(runtime_.api->CastTypeInfoToTensorInfo(type, &tensor));
    runtime_.Check(runtime_.api->GetTensorElementType(tensor, &element));
    return DataTypeOf(kA, element);
  }

  void Pack(const Inputs& inputs) {
    device::PlanOptions options;
    options.self_check = ep_.options().self_check;
    std::unique_ptr<device::MatMulPlan> plan;
    Check(device::MatMulPlan::Create(ep_.arena(), spec_, type_, HostInputs(inputs).get(), options, &plan));
    plan_ = std::move(plan);
  }

  void Run(OrtKernelContext* context) {
    std::call_once(packed_, [&] {
      if (plan_) return;
      Inputs inputs;
      for (size_t i = kB; i < kInputs; ++i)
        inputs[i] = ReadInput(*runtime_.api, spec_, i, InputValue(*runtime_.api, context, i));
      Pack(inputs);
    });
    const Call call = BeginCall(*runtime_.api, spec_, context);
    const int64_t m = call.rows;
    if (m == 0) return;
    void* y = nullptr;
    runtime_.Check(runtime_.api->GetTensorMutableData(call.y, &y));
    if (!call.a.data || !y) throw OrtError(ORT_EP_FAIL, ("no device memory: " + TakeAllocationError()).c_str());
    CheckPlace("input A", call.a_value);
    CheckPlace("output Y", call.y);
    void* stream = StreamOf(runtime_, context);
    const ProfiledLaunch profiled = ep_.Profile(stream, where_, *plan_, m);
    if (ep_.capturing()) {
      // A captured graph uses the workspace whenever it is replayed, so it comes from what stays allocated.
      Check(plan_->Launch(stream, call.a.data, m, y, ep_.CaptureWorkspace(plan_->WorkspaceBytes(m))));
    } else {
      Check(plan_->Launch(stream, call.a.data, m, y, ep_.arena()));
    }
  }

  // ONNX Runtime takes memory of one vendor for memory of one device, and with two GPU providers of different vendors
  // hands host memory to the second.
  void CheckPlace(const char* what, const OrtValue* value) const {
    const OrtMemoryDevice* memory = runtime_.ep->Value_GetMemoryDevice(value);
    const bool gpu = runtime_.ep->MemoryDevice_GetDeviceType(memory) == OrtMemoryInfoDeviceType_GPU;
    const auto ordinal = static_cast<int>(runtime_.ep->MemoryDevice_GetDeviceId(memory));
    if (gpu && ordinal == ep_.device()->ordinal()) return;
    throw std::invalid_argument(std::string(what) + " is in memory of " +
                                (gpu ? "GPU " + std::to_string(ordinal) : "the host") + ", expected GPU " +
                                std::to_string(ep_.device()->ordinal()));
  }

  Ep& ep_;
  const Runtime& runtime_;
  const std::string where_;
  const MatMulSpec spec_;
  const DataType type_;
  std::once_flag packed_;
  std::unique_ptr<const device::MatMulPlan> plan_;
};

// ---- MemcpyFromHost, MemcpyToHost -----------------------------------------------------------------------------------

class MemcpyKernel : public OrtKernelImpl {
 public:
  explicit MemcpyKernel(const Runtime& runtime) : OrtKernelImpl{}, runtime_(runtime) {
    ort_version_supported = runtime.version;
    Release = [](OrtKernelImpl* self) noexcept { delete static_cast<MemcpyKernel*>(self); };
    Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
      const Runtime& rt = static_cast<const MemcpyKernel*>(self)->runtime_;
      return Guard(*rt.api, "copy between host and device", [&] {
        const OrtValue* from = InputValue(*rt.api, context, 0);
        const Tensor tensor = ReadTensor(*rt.api, from);
        OrtValue* to = nullptr;
        rt.Check(rt.api->KernelContext_GetOutput(context, 0, tensor.shape.data(), tensor.shape.size(), &to));
        CopyTensor(rt, from, to, StreamOf(rt, context));
      });
    };
  }

 private:
  const Runtime runtime_;
};

// ---- registry -------------------------------------------------------------------------------------------------------

class Definition {
 public:
  Definition(const Runtime& runtime, const char* domain, const char* type) : runtime_(runtime) {
    runtime.Check(runtime.ep->CreateKernelDefBuilder(&builder_));
    runtime.Check(runtime.ep->KernelDefBuilder_SetDomain(builder_, domain));
    runtime.Check(runtime.ep->KernelDefBuilder_SetOperatorType(builder_, type));
    runtime.Check(runtime.ep->KernelDefBuilder_SetSinceVersion(builder_, 1, 1));
    runtime.Check(runtime.ep->KernelDefBuilder_SetExecutionProvider(builder_, kEpName));
  }
  ~Definition() { runtime_.ep->ReleaseKernelDefBuilder(builder_); }
  Definition(const Definition&) = delete;
  Definition& operator=(const Definition&) = delete;

  Definition& HostInput(size_t index) {
    runtime_.Check(runtime_.ep->KernelDefBuilder_SetInputMemType(builder_, index, OrtMemTypeCPUInput));
    return *this;
  }
  Definition& HostOutput(size_t index) {
    runtime_.Check(runtime_.ep->KernelDefBuilder_SetOutputMemType(builder_, index, OrtMemTypeCPUOutput));
    return *this;
  }
  void AddTo(OrtKernelRegistry* registry, OrtKernelCreateFunc create, Ep& ep) {
    OrtKernelDef* built = nullptr;
    runtime_.Check(runtime_.ep->KernelDefBuilder_Build(builder_, &built));
    OrtStatus* status = runtime_.ep->KernelRegistry_AddKernel(registry, built, create, &ep);
    runtime_.ep->ReleaseKernelDef(built);  // the registry has copied it
    runtime_.Check(status);
  }

 private:
  const Runtime& runtime_;
  OrtKernelDefBuilder* builder_ = nullptr;
};

OrtStatus* CreateMatMul(void* state, const OrtKernelInfo* info, OrtKernelImpl** kernel) noexcept {
  Ep& ep = *static_cast<Ep*>(state);
  const OrtApi& api = *ep.runtime().api;
  return Guard(api, std::string(kMatMulName) + " '" + NodeName(api, info) + "'",
               [&] { *kernel = new MatMulKernel(ep, info); });
}

OrtStatus* CreateMemcpy(void* state, const OrtKernelInfo*, OrtKernelImpl** kernel) noexcept {
  const Runtime& runtime = static_cast<Ep*>(state)->runtime();
  return Guard(*runtime.api, kEpName, [&] { *kernel = new MemcpyKernel(runtime); });
}

}  // namespace

KernelRegistryPtr MakeKernelRegistry(Ep& ep) {
  const Runtime& runtime = ep.runtime();
  OrtKernelRegistry* made = nullptr;
  runtime.Check(runtime.ep->CreateKernelRegistry(&made));
  KernelRegistryPtr registry(made, KernelRegistryDeleter{runtime.ep});
  Definition matmul(runtime, kDomain, kMatMulName);
  for (size_t i = kB; i < kInputs; ++i) matmul.HostInput(i);
  matmul.AddTo(made, CreateMatMul, ep);
  Definition(runtime, "", "MemcpyFromHost").HostInput(0).AddTo(made, CreateMemcpy, ep);
  Definition(runtime, "", "MemcpyToHost").HostOutput(0).AddTo(made, CreateMemcpy, ep);
  return registry;
}

}  // namespace mxort::provider
