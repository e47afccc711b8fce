// Compiled against the newest headers and, as a gate in `make check`, against those of ONNX Runtime 1.21: a function
// that 1.22 lacks is then a compile error instead of a crash.
#include "ops/custom_op.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/kernel_table.h"
#include "kernels/matmul.h"
#include "ops/kernel_info.h"
#include "ops/matmul_spec.h"
#include "ops/operator_kernel.h"
#include "ops/ort_status.h"
#include "ops/rocm_kernel.h"

namespace mxort {

namespace {

// ---- the kernel on the CPU ------------------------------------------------------------------------------------------

class MatMulKernel : public OperatorKernel {
 public:
  MatMulKernel(const OrtApi& api, DataType type, const OrtKernelInfo* info)
      : OperatorKernel(api, type, info),
        kernels_(SelectKernels(spec_, DetectCpu(), KernelOverride())),
        constants_(ReadConstants(info)) {
    for (size_t i = kB; i < kInputs; ++i) all_constant_ &= constants_[i].data != nullptr;
    if (constants_[kB].data && constants_[kBScale].data) {
      packed_ = SharedPackedWeights(spec_, *kernels_[0]->layout, WeightsOf(constants_));
    }
  }

  void Compute(OrtKernelContext* context) const override {
    const Call call = Begin(context);
    if (all_constant_) return Run(context, call, constants_);
    Inputs inputs = constants_;
    for (size_t i = kB; i < kInputs; ++i) {
      if (!inputs[i].data) inputs[i] = ReadChecked(i, InputValue(api_, context, i));
    }
    Run(context, call, inputs);
  }

 private:
  void Run(OrtKernelContext* context, const Call& node, const Inputs& inputs) const {
    if (node.rows == 0) return;
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
    call.M = node.rows;
    call.a = node.a.data;
    Check(api_, api_.GetTensorMutableData(node.y, &call.y));
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

  const Kernels kernels_;
  const Inputs constants_;
  bool all_constant_ = true;
  std::shared_ptr<const PackedWeights> packed_;  // null: the weights are not constant
};

// ---- schema ---------------------------------------------------------------------------------------------------------

// Where an op runs, and what makes its kernels.
struct Backend {
  const char* provider;       // null: the CPU
  OrtMemType weights_memory;  // of the inputs B to bias
  std::unique_ptr<OperatorKernel> (*make)(const OrtApi& api, DataType type, const OrtKernelInfo* info);
};
constexpr Backend kCpu = {nullptr, OrtMemTypeDefault, [](const OrtApi& api, DataType type, const OrtKernelInfo* info) {
                            return std::unique_ptr<OperatorKernel>(new MatMulKernel(api, type, info));
                          }};
constexpr Backend kRocm = {kRocmProvider, OrtMemTypeCPUInput, MakeRocmKernel};

struct MatMulOp : OrtCustomOp {
  const OrtApi* api;
  ElementType element;
  const Backend* backend;
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

MatMulOp MakeOp(const OrtApi* api, uint32_t version, const ElementType& element, const Backend& backend) {
  MatMulOp op{};
  op.version = version;  // the negotiated one: a runtime rejects a version newer than its own
  op.api = api;
  op.element = element;
  op.backend = &backend;
  op.GetName = [](const OrtCustomOp*) { return kMatMulName; };
  op.GetExecutionProviderType = [](const OrtCustomOp* self) { return Self(self).backend->provider; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    if (index == kA) return Self(self).element.onnx;
    return index == kB || index == kBScale ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp* self, size_t index) {
    return index == kA ? OrtMemTypeDefault : Self(self).backend->weights_memory;
  };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).element.onnx; };
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
    return Guard(*op_self.api, where,
                 [&] { *kernel = op_self.backend->make(*op_self.api, op_self.element.type, info).release(); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    const auto& self = *static_cast<const OperatorKernel*>(kernel);
    return Guard(self.api(), self.where(), [&] { self.Compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<OperatorKernel*>(kernel); };
  return op;
}

// Whether this build of ONNX Runtime knows a provider. Where it does not, ops for it are not registered at all.
bool HasProvider(const OrtApi& api, const char* name) {
  char** providers = nullptr;
  int count = 0;
  Check(api, api.GetAvailableProviders(&providers, &count));
  const bool found = std::any_of(providers, providers + count, [&](const char* p) { return std::string(name) == p; });
  Check(api, api.ReleaseAvailableProviders(providers, count));
  return found;
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
      // The CPU's first: of ops that share a name ONNX Runtime asks the first one for shapes.
      for (const ElementType& element : kElementTypes) entry.ops.push_back(MakeOp(entry.api, version, element, kCpu));
      if (HasProvider(*entry.api, kRocmProvider)) {
        for (const ElementType& element : kElementTypes)
          entry.ops.push_back(MakeOp(entry.api, version, element, kRocm));
      }
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
