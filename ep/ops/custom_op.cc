// Compiled against the newest headers and, as a gate in `make check`, against those of ONNX Runtime 1.21: a function
// that 1.22 lacks is then a compile error instead of a crash.
#include "ops/custom_op.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/float16.h"
#include "kernels/kernel_table.h"
#include "kernels/matmul.h"
#include "ops/matmul_spec.h"
#include "ops/ort_status.h"

namespace mxort {

const OrtApi* NegotiateApi(const OrtApiBase* base, uint32_t* version) {
  const std::string text = base->GetVersionString();  // "1.<minor>.<patch>"
  const size_t dot = text.find('.');
  const int minor = dot == std::string::npos ? 0 : std::atoi(text.c_str() + dot + 1);
  *version = static_cast<uint32_t>(minor < ORT_API_VERSION ? minor : ORT_API_VERSION);
  return base->GetApi(*version);
}

namespace {

struct DType {
  ONNXTensorElementDataType onnx;
  DataType type;
};
constexpr DType kTypes[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, DataType::kFloat},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, DataType::kFloat16},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, DataType::kBFloat16}};

// ---- reading what ONNX Runtime hands over ---------------------------------------------------------------------------

std::string NodeName(const OrtApi& api, const OrtKernelInfo* info) {
  size_t size = 0;
  if (OrtStatus* status = api.KernelInfo_GetNodeName(info, nullptr, &size)) api.ReleaseStatus(status);
  std::string name(size, '\0');
  if (OrtStatus* status = api.KernelInfo_GetNodeName(info, name.data(), &size)) {
    api.ReleaseStatus(status);
    return {};
  }
  name.resize(size ? size - 1 : 0);
  return name;
}

// What reading an attribute returned. An absent optional one leaves its default alone; anything else is an error. ONNX
// Runtime reports absence and a wrong type with the same code, hence the look at the text (the same from 1.22 to 1.31;
// a test pins it on each of them).
void CheckAttribute(const OrtApi& api, const char* name, bool optional, OrtStatus* status) {
  if (!status) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  const bool absent = message.find("No attribute with") != std::string::npos;
  if (absent && optional) return;
  throw std::invalid_argument(std::string("attribute ") + name + (absent ? " is missing" : ": " + message));
}

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

struct Tensor {
  Shape shape;
  void* data = nullptr;
};

Tensor ReadTensor(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api, api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(info, &rank));
  Tensor tensor{Shape(rank), nullptr};
  Check(api, api.GetDimensions(info, tensor.shape.data(), rank));
  Check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
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
    const Tensor a = ReadTensor(api_, InputValue(context, kA));
    const Shape shape = OutputShape(spec_, a.shape);
    OrtValue* y = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
    if (all_constant_) return Run(context, a, y, constants_);
    Inputs inputs = constants_;
    for (size_t i = kB; i < kInputs; ++i) {
      if (!inputs[i].data) inputs[i] = ReadChecked(i, InputValue(context, i));
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

  const OrtValue* InputValue(OrtKernelContext* context, size_t index) const {
    const OrtValue* value = nullptr;
    Check(api_, api_.KernelContext_GetInput(context, index, &value));
    if (!value) throw std::invalid_argument("input " + std::to_string(index) + " is missing");
    return value;
  }

  void Run(OrtKernelContext* context, const Tensor& a, OrtValue* y, const Inputs& inputs) const {
    MatMulCall call;
    call.spec = &spec_;
    call.kernels = &kernels_;
    call.weights = WeightsOf(inputs);
    const ParallelFor parallel = [&](int64_t tasks, const std::function<void(int64_t)>& body) {
      Parallel(context, tasks, body);
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

  // ONNX Runtime's own threads: the session's intra_op_num_threads is obeyed and nothing is oversubscribed. An
  // exception (memory) must not cross ONNX Runtime's frames; the first one is carried over.
  void Parallel(OrtKernelContext* context, int64_t tasks, const std::function<void(int64_t)>& body) const {
    if (tasks <= 1) return SerialFor(tasks, body);
    struct State {
      const std::function<void(int64_t)>* body;
      std::mutex mutex;
      std::exception_ptr error;
    } state{&body, {}, nullptr};
    const auto run = [](void* user, size_t task) {
      State& s = *static_cast<State*>(user);
      try {
        (*s.body)(static_cast<int64_t>(task));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(s.mutex);
        if (!s.error) s.error = std::current_exception();
      }
    };
    Check(api_, api_.KernelContext_ParallelFor(context, run, static_cast<size_t>(tasks), 0, &state));
    if (state.error) std::rethrow_exception(state.error);
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

// The output has A's dimensions with the last one replaced by N. The C++ wrapper marks symbolic dimensions in a way
// that ONNX Runtime rejects, so this is the C API: value -1 and a name. A dimension with neither gets a fresh name,
// because a bare -1 would be written into the model as a value.
void InferShape(const MatMulOp& op, OrtShapeInferContext* context) {
  const OrtApi& api = *op.api;
  OrtTensorTypeAndShapeInfo* a = nullptr;
  Check(api, api.ShapeInferContext_GetInputTypeShape(context, kA, &a));
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(a, &rank));
  if (rank == 0) return;  // also what an unknown rank reads as: leave the output's shape open
  Shape dims(rank);
  Check(api, api.GetDimensions(a, dims.data(), rank));
  std::vector<const char*> names(rank);
  Check(api, api.GetSymbolicDimensions(a, names.data(), rank));
  const OrtOpAttr* attribute = nullptr;
  Check(api, api.ShapeInferContext_GetAttribute(context, "N", &attribute));
  size_t size = 0;
  Check(api, api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &dims.back(), sizeof(int64_t), &size));
  std::vector<std::string> symbols(rank);
  static std::atomic<int64_t> fresh{0};
  for (size_t i = 0; i + 1 < rank; ++i) {
    if (dims[i] >= 0) continue;
    dims[i] = -1;
    symbols[i] = names[i] && *names[i] ? names[i] : "mxort_unk_" + std::to_string(fresh++);
  }
  for (size_t i = 0; i < rank; ++i) names[i] = symbols[i].c_str();
  OrtTensorTypeAndShapeInfo* y = nullptr;
  Check(api, api.CreateTensorTypeAndShapeInfo(&y));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owner(
      y, api.ReleaseTensorTypeAndShapeInfo);
  // A's type, not the op's own: for ops that share a name ONNX Runtime asks only the first one.
  ONNXTensorElementDataType type;
  Check(api, api.GetTensorElementType(a, &type));
  Check(api, api.SetTensorElementType(y, type));
  Check(api, api.SetDimensions(y, dims.data(), rank));
  Check(api, api.SetSymbolicDimensions(y, names.data(), rank));
  Check(api, api.ShapeInferContext_SetOutputTypeShape(context, 0, y));
}

MatMulOp MakeOp(const OrtApi* api, uint32_t version, DType dtype) {
  MatMulOp op{};
  op.version = version;  // the negotiated one: a runtime rejects a version newer than its own
  op.api = api;
  op.dtype = dtype;
  op.GetName = [](const OrtCustomOp*) { return kMatMulName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    if (index == kA) return Self(self).dtype.onnx;
    return index == kB || index == kBScale ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).dtype.onnx; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
    return Guard(*Self(self).api, kMatMulName, [&] { InferShape(Self(self), context); });
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
    }
    OrtCustomOpDomain* domain = nullptr;
    Check(*entry.api, entry.api->CreateCustomOpDomain(kDomain, &domain));
    for (const MatMulOp& op : entry.ops) Check(*entry.api, entry.api->CustomOpDomain_Add(domain, &op));
    entry.domain = domain;
  }
  *api = entry.api;
  return entry.domain;
}

}  // namespace mxort
