// Compiled against the newest headers and, as a gate in `make check`, against those of ONNX Runtime 1.21: a function
// that 1.22 lacks is then a compile error instead of a crash.
#include "ops/custom_op.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "kernels/kernel_table.h"
#include "kernels/matmul.h"
#include "kernels/vector_functions.h"
#include "kernels/weight_memory.h"
#include "ops/attention_op.h"
#include "ops/custom_op_base.h"
#include "ops/experts_op.h"
#include "ops/gather_op.h"
#include "ops/matmul_inputs.h"
#include "ops/matmul_spec.h"
#include "ops/operator_kernel.h"
#include "ops/ort_status.h"
#include "ops/rocm_kernel.h"

namespace mxort {

namespace {

// ---- the kernel on the CPU ------------------------------------------------------------------------------------------

// A weight of a node with its vectors, as far as they are constant.
class Operand {
 public:
  Operand(const OrtApi& api, const MatMulSpec& spec, const WeightLayout& layout, const OrtKernelInfo* info,
          size_t number)
      : number_(number), constants_(ReadConstants(api, spec, info, number)) {
    if (AllPresent(constants_)) host_.emplace(constants_);
    if (!constants_[kB].data || !constants_[kBScale].data) return;
    packed_ = SharedPackedWeights(spec, layout, WeightsOf(constants_));
    const int64_t blocks = spec.N * BlocksOf(spec.K);
    DropFilePages(constants_[kB].data, static_cast<size_t>(blocks * BlockBytes(spec.weight_format)));
    DropFilePages(constants_[kBScale].data, static_cast<size_t>(blocks));
  }

  size_t number() const { return number_; }
  const Inputs& constants() const { return constants_; }
  const HostInputs* host() const { return host_ ? &*host_ : nullptr; }            // null: not all are constant
  const std::shared_ptr<const PackedWeights>& packed() const { return packed_; }  // null: the weights are not

 private:
  const size_t number_;
  const Inputs constants_;
  std::optional<HostInputs> host_;
  std::shared_ptr<const PackedWeights> packed_;
};

// An operand for one call: what is not constant is read and packed.
class OperandOfCall {
 public:
  OperandOfCall(const OrtApi& api, const MatMulSpec& spec, const WeightLayout& layout, const Operand& operand,
                OrtKernelContext* context, const ParallelFor& parallel)
      : packed_(operand.packed()) {
    const HostInputs* host = operand.host();
    if (!host) {
      Inputs inputs = operand.constants();
      for (size_t i = kB; i < kInputs; ++i) {
        if (inputs[i].data) continue;
        inputs[i] = ReadInput(api, spec, i, InputValue(api, context, InputIndex(operand.number(), i)));
      }
      host = &host_.emplace(inputs);
    }
    const device::HostWeights& of_host = host->get();
    if (!packed_) packed_ = std::make_shared<PackedWeights>(spec, layout, of_host.weights, parallel);
    get_ = {packed_.get(), of_host.weights, of_host.column_scale, of_host.bias};
  }
  const MatMulOperand& get() const { return get_; }

 private:
  std::optional<HostInputs> host_;
  std::shared_ptr<const PackedWeights> packed_;
  MatMulOperand get_;
};

class MatMulKernel : public OperatorKernel {
 public:
  MatMulKernel(const OrtApi& api, const WeightOperator& op, DataType type, const OrtKernelInfo* info)
      : OperatorKernel(api, op, type, info),
        kernels_(SelectKernels(spec_, DetectCpu(), KernelOverride())),
        activation_(ActivationOf(op, KernelAttributes(api, info))),
        activate_(op.activated ? SelectFunctions(DetectCpu(), KernelOverride()).activate : nullptr) {
    for (size_t i = 0; i < op.operands; ++i) operands_.emplace_back(api, spec_, *kernels_[0]->layout, info, i);
  }

  void Compute(OrtKernelContext* context) const override {
    const Call node = BeginCall(api_, spec_, context);
    if (node.rows == 0) return;
    const ParallelFor parallel = [&](int64_t tasks, const std::function<void(int64_t)>& body) {
      Parallel(api_, context, tasks, body);
    };
    std::optional<OperandOfCall> operands[2];
    for (const Operand& operand : operands_) {
      operands[operand.number()].emplace(api_, spec_, *kernels_[0]->layout, operand, context, parallel);
    }
    void* y = nullptr;
    Check(api_, api_.GetTensorMutableData(node.y, &y));
    MatMul({&spec_,
            &kernels_,
            operands[0]->get(),
            type_,
            node.rows,
            node.a.data,
            y,
            {activate_, activation_, operands[1] ? &operands[1]->get() : nullptr}},
           parallel);
  }

 private:
  const Kernels kernels_;
  const Activation activation_;
  const Activate activate_;       // null: the operator has no epilogue
  std::deque<Operand> operands_;  // elements that do not move
};

// ---- schema ---------------------------------------------------------------------------------------------------------

// Where an op runs, and what makes its kernels.
struct Backend {
  const char* provider;       // null: the CPU
  OrtMemType weights_memory;  // of the inputs B to bias
  std::unique_ptr<OperatorKernel> (*make)(const OrtApi&, const WeightOperator&, DataType, const OrtKernelInfo*);
};
constexpr Backend kCpu = {nullptr, OrtMemTypeDefault,
                          [](const OrtApi& api, const WeightOperator& op, DataType type, const OrtKernelInfo* info) {
                            return std::unique_ptr<OperatorKernel>(new MatMulKernel(api, op, type, info));
                          }};
constexpr Backend kRocm = {kRocmProvider, OrtMemTypeCPUInput,
                           [](const OrtApi& api, const WeightOperator&, DataType type, const OrtKernelInfo* info) {
                             return MakeRocmKernel(api, type, info);
                           }};

struct MatMulOp : OrtCustomOp {
  const OrtApi* api;
  const WeightOperator* what;
  NodeType type;
  const Backend* backend;
};

const MatMulOp& Self(const OrtCustomOp* op) { return *static_cast<const MatMulOp*>(op); }

MatMulOp MakeOp(const OrtApi* api, uint32_t version, const WeightOperator& what, const NodeType& type,
                const Backend& backend) {
  MatMulOp op{};
  static_cast<OrtCustomOp&>(op) = BasicOp(version);
  op.api = api;
  op.what = &what;
  op.type = type;
  op.backend = &backend;
  op.GetName = [](const OrtCustomOp* self) { return Self(self).what->name.c_str(); };
  op.GetExecutionProviderType = [](const OrtCustomOp* self) { return Self(self).backend->provider; };
  op.GetInputTypeCount = [](const OrtCustomOp* self) -> size_t { return InputCount(*Self(self).what); };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    const Input input = InputOf(index);
    if (input == kA) return Self(self).type.a.onnx;
    return input == kB || input == kBScale ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : Self(self).type.vectors;
  };
  op.GetInputMemoryType = [](const OrtCustomOp* self, size_t index) {
    return index == kA ? OrtMemTypeDefault : Self(self).backend->weights_memory;
  };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).type.a.onnx; };
  op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
    const MatMulOp& op_self = Self(self);
    return Guard(*op_self.api, op_self.what->name, [&] { InferLastDimension(*op_self.api, context, "N", true, kA); });
  };
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatusPtr {
    const MatMulOp& op_self = Self(self);
    const std::string where = op_self.what->name + " '" + NodeName(*op_self.api, info) + "'";
    return Guard(*op_self.api, where, [&] {
      *kernel = op_self.backend->make(*op_self.api, *op_self.what, op_self.type.a.type, info).release();
    });
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
  std::vector<GatherOp> gathers;
  std::vector<AttentionOp> attentions;
  std::vector<ExpertsOp> experts;
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
      for (const WeightOperator& what : MatMulOperators()) {
        for (const NodeType& type : NodeTypes()) {
          entry.ops.push_back(MakeOp(entry.api, version, what, type, kCpu));
        }
      }
      if (HasProvider(*entry.api, kRocmProvider)) {
        for (const NodeType& type : NodeTypes()) {
          entry.ops.push_back(MakeOp(entry.api, version, Mxfp4Operator(), type, kRocm));
        }
      }
      entry.gathers = GatherOps(entry.api, version);
      entry.attentions = AttentionOps(entry.api, version);
      entry.attentions.push_back(MakeDenseAttentionOp(entry.api, version));
      entry.experts = ExpertsOps(entry.api, version);
    }
    OrtCustomOpDomain* domain = nullptr;
    Check(*entry.api, entry.api->CreateCustomOpDomain(kDomain, &domain));
    for (const MatMulOp& op : entry.ops) Check(*entry.api, entry.api->CustomOpDomain_Add(domain, &op));
    for (const GatherOp& op : entry.gathers) Check(*entry.api, entry.api->CustomOpDomain_Add(domain, &op));
    for (const AttentionOp& op : entry.attentions) Check(*entry.api, entry.api->CustomOpDomain_Add(domain, &op));
    for (const ExpertsOp& op : entry.experts) Check(*entry.api, entry.api->CustomOpDomain_Add(domain, &op));
    entry.domain = domain;
  }
  *api = entry.api;
  return entry.domain;
}

}  // namespace mxort
