// Products with quantised weights: MatMulMX*, FusedMatMulMX* and GatedMatMulMX*. The weights are packed on the device,
// one plan a node (device/matmul_plan.h) with the activation in it; the two weights of a gate are one of twice the
// columns.
#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>

#include "provider/op_table.h"
#include "provider/ops/quantised_product.h"

namespace mxort::provider {
namespace {

static_assert(static_cast<int>(Activation::kSilu) == static_cast<int>(hip::Follow::kSilu));

const WeightOperator& OperatorNamed(const std::string& name) {
  const WeightOperator* op = QuantisedProductNamed(kDomain, name);
  if (!op) throw std::invalid_argument("operator " + name + " is not known");
  return *op;
}

// What the plan computes: the columns of both operands of a gate in turns, 32 and 32 (device::PlanOptions).
MatMulSpec Joined(MatMulSpec spec, const WeightOperator& op) {
  constexpr int64_t kTurn = hip::kGateColumns;
  if (op.operands == 2) spec.N = (spec.N + kTurn - 1) / kTurn * kTurn * 2;
  return spec;
}

// The inputs B to bias of both operands of a gate in that order; the columns that fill up a turn are zeros.
class JoinedWeights {
 public:
  JoinedWeights(const MatMulSpec& spec, const std::vector<Inputs>& operands) {
    const HostInputs gates(operands[0]), values(operands[1]);
    const int64_t blocks = BlocksOf(spec.K), bytes = blocks * BlockBytes(spec.weight_format);
    for (int64_t begin = 0; begin < spec.N; begin += hip::kGateColumns) {
      const int64_t count = std::min<int64_t>(hip::kGateColumns, spec.N - begin);
      for (const HostInputs* host : {&gates, &values}) {
        const device::HostWeights& of = host->get();
        Append(of.weights.codes, begin, count, bytes, &codes_);
        Append(of.weights.scales, begin, count, blocks, &scales_);
        Append(of.column_scale, begin, count, 1, &column_scale_);
        Append(of.bias, begin, count, 1, &bias_);
      }
    }
  }
  device::HostWeights get() const { return {{codes_.data(), scales_.data()}, column_scale_.data(), bias_.data()}; }

 private:
  // `count` columns, of `size` elements each, and zeros to the end of the turn.
  template <class T>
  static void Append(const T* values, int64_t begin, int64_t count, int64_t size, std::vector<T>* all) {
    all->insert(all->end(), values + begin * size, values + (begin + count) * size);
    all->resize(all->size() + static_cast<size_t>((hip::kGateColumns - count) * size));
  }
  std::vector<uint8_t> codes_, scales_;
  std::vector<float> column_scale_, bias_;
};

// The weights are inputs on the host: nothing but what the kernel packs goes to the device. They are packed when the
// kernel is created, where all inputs can be read together, and PrePackWeight then only tells ONNX Runtime that it may
// free them. Constants of an outer graph (If, Loop) cannot be read at creation: they are packed in the first run.
class MatMulMx : public NodeKernel {
 public:
  explicit MatMulMx(const NodeInfo& node)
      : NodeKernel(node),
        op_(OperatorNamed(node.row.type)),
        spec_(CheckAttributes(ReadAttributes(node.attributes, op_))),
        activation_(ActivationOf(op_, node.attributes)),
        type_(DataTypeOf(kA, node.InputType(kA))) {
    PrePackWeight = [](OrtKernelImpl* self, const OrtValue*, int input, OrtAllocator*, OrtSharedPrePackedWeightCache*,
                       bool* is_packed) noexcept -> OrtStatus* {
      *is_packed = input != kA && static_cast<MatMulMx*>(self)->plan_ != nullptr;
      return nullptr;
    };
    std::vector<mxort::Inputs> operands;
    for (size_t i = 0; i < op_.operands; ++i) {
      operands.push_back(ReadConstants(*ep().runtime().api, spec_, node.info, i));
    }
    if (std::all_of(operands.begin(), operands.end(), AllPresent)) Pack(operands);
  }

 private:
  void Pack(const std::vector<mxort::Inputs>& operands) {
    plan_ = MakePlan(ep(), op_, spec_, activation_, type_, operands);
  }

  void PackInFirstRun(const NodeCall& call) {
    if (plan_) return;
    const OrtApi& api = *ep().runtime().api;
    std::vector<mxort::Inputs> operands(op_.operands);
    for (size_t o = 0; o < operands.size(); ++o) {
      for (size_t i = kB; i < kInputs; ++i) {
        operands[o][i] = ReadInput(api, spec_, i, InputValue(api, call.context(), InputIndex(o, i)));
      }
    }
    Pack(operands);
  }

  void Run(NodeCall& call) override {
    std::call_once(packed_, [&] { PackInFirstRun(call); });
    const Tensor a = call.Input(kA);
    const Shape shape = OutputShape(spec_, a.shape);
    const Tensor y = call.Output(0, shape);
    const int64_t m = ElementsOf(shape) / spec_.N;
    if (m == 0) return;
    if (!a.data) throw OrtError(ORT_EP_FAIL, "no device memory for A");
    const ProfiledLaunch profiled = ep().Profile(call.stream(), where(), *plan_, m);
    const size_t work = plan_->WorkspaceBytes(m);
    Check(plan_->Launch(call.stream(), a.data, m, y.data, work ? call.Workspace(work) : nullptr));
  }

  const WeightOperator& op_;
  const MatMulSpec spec_;
  const Activation activation_;
  const DataType type_;
  std::once_flag packed_;
  std::unique_ptr<const device::MatMulPlan> plan_;
};

std::string WhyLeft(const Ep& ep, const NodeView& node) {
  const WeightOperator& op = OperatorNamed(node.type());
  if (node.Inputs() != InputCount(op)) return "it has " + std::to_string(node.Inputs()) + " inputs";
  const MatMulSpec spec = CheckAttributes(ReadAttributes(node, op));
  ActivationOf(op, node);
  for (size_t i = kB; i < node.Inputs(); ++i) {
    const Input input = InputOf(i);
    const char* name = kInputNames[input];
    if (!node.Has(i)) return std::string(name) + " is missing";
    if (!node.IsConstant(i)) return std::string(name) + " is no constant";
    CheckInput(spec, input, node.InputShape(i));
    if (input >= kColumnScale) DataTypeOf(input, node.InputType(i));
  }
  return ep.WhyUnsupported(Joined(spec, op), DataTypeOf(kA, node.InputType(kA)));
}

}  // namespace

const WeightOperator* QuantisedProductNamed(const std::string& domain, const std::string& type) {
  if (domain != kDomain) return nullptr;
  for (const WeightOperator& op : MatMulOperators()) {
    if (op.name == type) return &op;
  }
  return nullptr;
}

std::unique_ptr<const device::MatMulPlan> MakePlan(const Ep& ep, const WeightOperator& op, const MatMulSpec& spec,
                                                   Activation activation, DataType type,
                                                   const std::vector<Inputs>& operands) {
  device::PlanOptions options;
  options.self_check = ep.options().self_check;
  options.follow = static_cast<hip::Follow>(activation);
  if (op.operands == 2) options.gated_columns = spec.N;
  std::unique_ptr<device::MatMulPlan> plan;
  if (operands.size() == 1) {
    Check(device::MatMulPlan::Create(ep.arena(), spec, type, HostInputs(operands[0]).get(), options, &plan));
  } else {
    const JoinedWeights weights(spec, operands);
    Check(device::MatMulPlan::Create(ep.arena(), Joined(spec, op), type, weights.get(), options, &plan));
  }
  return plan;
}

void AddMatMulMx(Rows& rows) {
  for (const WeightOperator& op : MatMulOperators()) {
    OpRow row{kDomain, op.name.c_str(), 1, 1, {}, Create<MatMulMx>, WhyLeft};
    for (size_t i = kB; i < InputCount(op); ++i) row.host_inputs.push_back(i);
    rows.push_back(row);
  }
}

}  // namespace mxort::provider
