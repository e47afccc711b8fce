// Compiled against the newest headers and, as a gate in `make check`, against those of ONNX Runtime 1.21: a function
// that 1.22 lacks is then a compile error instead of a crash.
#include "ops/custom_op.h"

#include <array>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/float16.h"
#include "kernels/kernel_table.h"
#include "kernels/matmul.h"
#include "ops/custom_op_base.h"
#include "ops/gather_op.h"
#include "ops/matmul_spec.h"
#include "ops/ort_status.h"

namespace mxort {

namespace {

struct DType {
  ONNXTensorElementDataType onnx;
  DataType type;
};
constexpr DType kTypes[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, DataType::kFloat},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, DataType::kFloat16},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, DataType::kBFloat16}};

// ---- reading what ONNX Runtime hands over ---------------------------------------------------------------------------

MatMulAttributes ReadAttributes(const OrtApi& api, const OrtKernelInfo* info) {
  MatMulAttributes attributes;
  const auto read_int = [&](const char* name, bool optional, int64_t* value) {
    CheckAttribute(api, name, optional, api.KernelInfoGetAttribute_int64(info, name, value));
  };
  read_int("K", false, &attributes.K);
  read_int("N", false, &attributes.N);
  read_int("rotation", true, &attributes.rotation);
  read_int("accuracy_level", true, &attributes.accuracy_level);
  constexpr const char* kFormat = "activation_format";
  size_t size = 0;  // with the terminating zero; stays 0 where the attribute is absent
  CheckAttribute(api, kFormat, true, api.KernelInfoGetAttribute_string(info, kFormat, nullptr, &size));
  if (size > 0) {
    std::string text(size, '\0');
    CheckAttribute(api, kFormat, true, api.KernelInfoGetAttribute_string(info, kFormat, text.data(), &size));
    text.resize(size - 1);
    attributes.activation_format = text;
  }
  return attributes;
}

// ---- the kernel -----------------------------------------------------------------------------------------------------

class MatMulKernel {
  using Inputs = std::array<Tensor, kInputs>;

 public:
  MatMulKernel(const OrtApi& api, DataType type, const OrtKernelInfo* info)
      : api_(api),
        type_(type),
        where_(std::string(kMatMulName) + " '" + NodeName(api, info) + "'"),
        spec_(CheckAttributes(ReadAttributes(api, info))),
        kernels_(SelectKernels(spec_, DetectCpu(), KernelOverride())) {
    for (size_t i = kB; i < kInputs; ++i) {
      int is_constant = 0;
      const OrtValue* value = nullptr;
      Check(api_, api_.KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value));
      if (is_constant) constants_[i] = ReadChecked(i, value);
      all_constant_ &= is_constant != 0;
    }
    if (constants_[kB].data && constants_[kBScale].data) {
      packed_ = SharedPackedWeights(spec_, *kernels_[0]->layout, WeightsOf(constants_));
    }
  }

  const std::string& where() const { return where_; }
  const OrtApi& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    const Tensor a = ReadTensor(api_, InputValue(api_, context, kA));
    const Shape shape = OutputShape(spec_, a.shape);
    OrtValue* y = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
    if (all_constant_) return Run(context, a, y, constants_);
    Inputs inputs = constants_;
    for (size_t i = kB; i < kInputs; ++i) {
      if (!inputs[i].data) inputs[i] = ReadChecked(i, InputValue(api_, context, i));
    }
    Run(context, a, y, inputs);
  }

 private:
  static Weights WeightsOf(const Inputs& inputs) {
    return {static_cast<const uint8_t*>(inputs[kB].data), static_cast<const uint8_t*>(inputs[kBScale].data)};
  }

  Tensor ReadChecked(size_t index, const OrtValue* value) const {
    Tensor tensor = ReadTensor(api_, value);
    CheckInput(spec_, static_cast<Input>(index), tensor.shape);
    return tensor;
  }

  void Run(OrtKernelContext* context, const Tensor& a, OrtValue* y, const Inputs& inputs) const {
    MatMulCall call;
    call.spec = &spec_;
    call.kernels = &kernels_;
    call.weights = WeightsOf(inputs);
    const ParallelFor parallel = [&](int64_t tasks, const std::function<void(int64_t)>& body) {
      Parallel(api_, context, tasks, body);
    };
    const auto packed =
        packed_ ? packed_ : std::make_shared<PackedWeights>(spec_, *kernels_[0]->layout, call.weights, parallel);
    call.packed = packed.get();
    call.column_scale = static_cast<const float*>(inputs[kColumnScale].data);
    call.bias = static_cast<const float*>(inputs[kBias].data);
    call.type = type_;
    call.M = 1;
    for (size_t i = 0; i + 1 < a.shape.size(); ++i) call.M *= a.shape[i];
    call.a = a.data;
    if (call.M == 0) return;
    Check(api_, api_.GetTensorMutableData(y, &call.y));
    MatMul(call, parallel);
  }

  const OrtApi& api_;
  const DataType type_;
  const std::string where_;
  const MatMulSpec spec_;
  const Kernels kernels_;
  Inputs constants_;  // data null where the input is no constant; ONNX Runtime keeps constants as long as the session
  bool all_constant_ = true;
  std::shared_ptr<const PackedWeights> packed_;  // null: the weights are not constant
};

// ---- schema ---------------------------------------------------------------------------------------------------------

struct MatMulOp : OrtCustomOp {
  const OrtApi* api;
  DType dtype;
};

const MatMulOp& Self(const OrtCustomOp* op) { return *static_cast<const MatMulOp*>(op); }

MatMulOp MakeOp(const OrtApi* api, uint32_t version, DType dtype) {
  MatMulOp op{};
  static_cast<OrtCustomOp&>(op) = BasicOp(version);
  op.api = api;
  op.dtype = dtype;
  op.GetName = [](const OrtCustomOp*) { return kMatMulName; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    if (index == kA) return Self(self).dtype.onnx;
    return index == kB || index == kBScale ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).dtype.onnx; };
  op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
    return Guard(*Self(self).api, kMatMulName, [&] { InferLastDimension(*Self(self).api, context, "N", true); });
  };
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatusPtr {
    const MatMulOp& op_self = Self(self);
    const std::string where = std::string(kMatMulName) + " '" + NodeName(*op_self.api, info) + "'";
    return Guard(*op_self.api, where, [&] { *kernel = new MatMulKernel(*op_self.api, op_self.dtype.type, info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    const auto& self = *static_cast<const MatMulKernel*>(kernel);
    return Guard(self.api(), self.where(), [&] { self.Compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<MatMulKernel*>(kernel); };
  return op;
}

struct Domain {
  const OrtApi* api = nullptr;
  std::vector<MatMulOp> ops;
  std::vector<GatherOp> gathers;
  OrtCustomOpDomain* domain = nullptr;
};

}  // namespace

OrtCustomOpDomain* CustomOpDomain(const OrtApiBase* base, const OrtApi** api) {
  // A process may hold two runtimes (onnxruntime and one bundled with another package); each gets its own domain.
  static auto& mutex = *new std::mutex;
  static auto& domains = *new std::map<const OrtApiBase*, Domain>;
  const std::lock_guard<std::mutex> lock(mutex);
  Domain& entry = domains[base];
  if (!entry.domain) {
    uint32_t version = 0;
    entry.api = NegotiateApi(base, &version);
    if (!entry.api) throw std::runtime_error(std::string("unsupported ONNX Runtime ") + base->GetVersionString());
    if (entry.ops.empty()) {
      for (const DType dtype : kTypes) entry.ops.push_back(MakeOp(entry.api, version, dtype));
      entry.gathers = GatherOps(entry.api, version);
    }
    OrtCustomOpDomain* domain = nullptr;
    Check(*entry.api, entry.api->CreateCustomOpDomain(kDomain, &domain));
    for (const MatMulOp& op : entry.ops) Check(*entry.api, entry.api->CustomOpDomain_Add(domain, &op));
    for (const GatherOp& op : entry.gathers) Check(*entry.api, entry.api->CustomOpDomain_Add(domain, &op));
    entry.domain = domain;
  }
  *api = entry.api;
  return entry.domain;
}

}  // namespace mxort
