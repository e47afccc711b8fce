// Operators that compute every element of their output from the elements at its place in their inputs.
#include "provider/ops/pointwise.h"

#include <algorithm>
#include <limits>

namespace mxort::provider {
namespace {

using hip::Function;

float FloatOr(const Attributes& attributes, const char* name, float otherwise) {
  float value = 0;
  return attributes.Float(name, &value) ? value : otherwise;
}

float FlagOr(const Attributes& attributes, const char* name, int64_t otherwise) {
  int64_t value = 0;
  return static_cast<float>(attributes.Int(name, &value) ? value : otherwise);
}

class PointwiseNode : public NodeKernel {
 public:
  PointwiseNode(const NodeInfo& node, const PointwiseRow& row) : NodeKernel(node) {
    std::vector<hip::Type> types;
    std::vector<int> from;
    for (size_t i = 0; i < node.Inputs(); ++i) {
      const ONNXTensorElementDataType type = node.InputType(i);
      from.push_back(type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED ? device::kAbsent
                                                                     : static_cast<int>(types.size()));
      if (from.back() == device::kAbsent) continue;
      given_.push_back(i);
      types.push_back(DeviceType(type));
    }
    std::vector<device::PointwiseStep> steps;
    AppendSteps(row, node.attributes, from, DeviceType(node.OutputType(0)), &steps);
    many_ = !device::Pointwise::Fits(types.size(), steps);
    if (many_) {
      types.resize(2);
      steps.resize(1);
    }
    Check(device::Pointwise::Load(ep().device(), types, steps, &pointwise_));
  }

 private:
  void Run(NodeCall& call) override {
    std::vector<device::Operand> in;
    const Shape shape = Operands(call, given_, &in);
    const Tensor out = call.Output(0, shape);
    if (!out.data) return;
    if (!many_) {
      Check(pointwise_.Launch(call.stream(), in, out.data, shape));
      return;
    }
    // More inputs than a launch has room for, of one type: two at a time.
    Check(pointwise_.Launch(call.stream(), {in[0], in[1]}, out.data, shape));
    for (size_t i = 2; i < in.size(); ++i) {
      Check(pointwise_.Launch(call.stream(), {{out.data, in[0].type, shape}, in[i]}, out.data, shape));
    }
  }

  std::vector<size_t> given_;
  bool many_ = false;
  device::Pointwise pointwise_;
};

std::array<float, 2> AlphaBeta(const Attributes& node, float alpha, float beta) {
  return {FloatOr(node, "alpha", alpha), FloatOr(node, "beta", beta)};
}

std::vector<PointwiseRow> MakeTable() {
  const Types &floats = FloatTypes(), &numbers = NumberTypes(), &all = AllTypes();
  const Types is_bool = {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
  const std::vector<std::pair<const char*, Types>> of_floats = {{"T", floats}}, of_numbers = {{"T", numbers}},
                                                   compare = {{"T", all}, {"T1", is_bool}},
                                                   logic = {{"T", is_bool}, {"T1", is_bool}};
  const char* const microsoft = "com.microsoft";
  return {
      {"", "Abs", 6, Function::kAbs, of_numbers},
      {"", "Neg", 6, Function::kNeg, of_numbers},
      {"", "Sign", 9, Function::kSign, of_numbers},
      {"", "Relu", 6, Function::kRelu, of_numbers},
      {"", "Sqrt", 6, Function::kSqrt, of_floats},
      {"", "Reciprocal", 6, Function::kReciprocal, of_floats},
      {"", "Exp", 6, Function::kExp, of_floats},
      {"", "Log", 6, Function::kLog, of_floats},
      {"", "Erf", 9, Function::kErf, of_floats},
      {"", "Tanh", 6, Function::kTanh, of_floats},
      {"", "Sigmoid", 6, Function::kSigmoid, of_floats},
      {"", "Softplus", 1, Function::kSoftplus, of_floats},
      {"", "Sin", 7, Function::kSin, of_floats},
      {"", "Cos", 7, Function::kCos, of_floats},
      {"", "Floor", 6, Function::kFloor, of_floats},
      {"", "Ceil", 6, Function::kCeil, of_floats},
      {"", "Round", 11, Function::kRound, of_floats},
      {"", "IsNaN", 9, Function::kIsNaN, {{"T1", floats}, {"T2", is_bool}}},
      {"",
       "IsInf",
       10,
       Function::kIsInf,
       {{"T1", floats}, {"T2", is_bool}},
       [](const Attributes& node) -> std::array<float, 2> {
         return {FlagOr(node, "detect_negative", 1), FlagOr(node, "detect_positive", 1)};
       }},
      {"", "LeakyRelu", 6, Function::kLeakyRelu, of_floats,
       [](const Attributes& node) { return AlphaBeta(node, 0.01f, 0.0f); }},
      {"", "Elu", 6, Function::kElu, of_floats, [](const Attributes& node) { return AlphaBeta(node, 1.0f, 0.0f); }},
      {"", "HardSigmoid", 6, Function::kHardSigmoid, of_floats,
       [](const Attributes& node) { return AlphaBeta(node, 0.2f, 0.5f); }},
      {"", "HardSwish", 14, Function::kHardSwish, of_floats,
       [](const Attributes&) -> std::array<float, 2> { return {1.0f / 6.0f, 0.5f}; }},
      {"", "Swish", 24, Function::kSwish, of_floats,
       [](const Attributes& node) { return AlphaBeta(node, 1.0f, 0.0f); }},
      {"", "Mish", 18, Function::kMish, of_floats},
      {"", "Gelu", 20, Function::kGelu, of_floats},
      {"", "PRelu", 7, Function::kPRelu, of_floats},
      {"", "Clip", 11, Function::kClip, of_numbers},
      {"", "Add", 7, Function::kAdd, of_numbers},
      {"", "Sub", 7, Function::kSub, of_numbers},
      {"", "Mul", 7, Function::kMul, of_numbers},
      {"", "Div", 7, Function::kDiv, of_numbers},
      {"", "Pow", 7, Function::kPow, of_floats},
      {"", "Min", 8, Function::kMin, of_numbers, nullptr, true},
      {"", "Max", 8, Function::kMax, of_numbers, nullptr, true},
      {"", "Sum", 8, Function::kAdd, of_floats, nullptr, true},
      {"", "Equal", 7, Function::kEqual, compare},
      {"", "Less", 7, Function::kLess, compare},
      {"", "Greater", 7, Function::kGreater, compare},
      {"", "LessOrEqual", 12, Function::kLessOrEqual, compare},
      {"", "GreaterOrEqual", 12, Function::kGreaterOrEqual, compare},
      {"", "Not", 1, Function::kNot, {{"T", is_bool}}},
      {"", "And", 7, Function::kAnd, logic},
      {"", "Or", 7, Function::kOr, logic},
      {"", "Xor", 7, Function::kXor, logic},
      {"", "Where", 9, Function::kWhere, {{"B", is_bool}, {"T", all}}},
      {"", "Cast", 6, Function::kIdentity, {{"T1", all}, {"T2", all}}},
      {microsoft, "Gelu", 1, Function::kGelu, of_floats},
      {microsoft, "BiasGelu", 1, Function::kGelu, of_floats},
      {microsoft, "FastGelu", 1, Function::kGeluTanh, of_floats},
      {microsoft, "QuickGelu", 1, Function::kSwish, of_floats,
       [](const Attributes& node) { return AlphaBeta(node, 1.702f, 0.0f); }},
  };
}

const std::vector<PointwiseRow>& Table() {
  static const std::vector<PointwiseRow> table = MakeTable();
  return table;
}

}  // namespace

const PointwiseRow* PointwiseNamed(const std::string& domain, const std::string& type) {
  for (const PointwiseRow& row : Table()) {
    if (domain == row.domain && type == row.type) return &row;
  }
  return nullptr;
}

void AppendSteps(const PointwiseRow& row, const Attributes& attributes, const std::vector<int>& from, hip::Type type,
                 std::vector<device::PointwiseStep>* steps) {
  device::PointwiseStep step{row.function, {}, type};
  step.from.fill(device::kAbsent);
  if (row.parameters) {
    const std::array<float, 2> p = row.parameters(attributes);
    step.a = p[0];
    step.b = p[1];
  }
  std::string form;
  if (row.function == Function::kGelu && attributes.String("approximate", &form) && form == "tanh") {
    step.function = Function::kGeluTanh;
  }
  if (!row.variadic) {
    std::copy(from.begin(), from.end(), step.from.begin());
    steps->push_back(step);
    return;
  }
  step.from[0] = from[0];
  if (from.size() == 1) step.function = Function::kIdentity;
  if (from.size() == 1) steps->push_back(step);
  for (size_t i = 1; i < from.size(); ++i) {
    step.from[1] = from[i];
    steps->push_back(step);
    step.from[0] = device::ResultOf(steps->size() - 1);
  }
}

Shape Operands(const NodeCall& call, const std::vector<size_t>& inputs, std::vector<device::Operand>* operands) {
  Shape shape;
  for (const size_t i : inputs) {
    const Tensor tensor = call.Input(i);
    operands->push_back({tensor.data, call.TypeOf(tensor), tensor.shape});
    const Shape before = shape;
    if (device::Broadcast(before, tensor.shape, &shape)) continue;
    Fail("input " + std::to_string(i), "shape " + Text(tensor.shape), "one that broadcasts with " + Text(before));
  }
  return shape;
}

void AddPointwise(Rows& rows) {
  for (const PointwiseRow& row : Table()) {
    rows.push_back({row.domain, row.type, row.since, *row.domain ? 1 : kNewest, row.constraints,
                    [&row](const NodeInfo& node) { return std::make_unique<PointwiseNode>(node, row); }});
  }
}

}  // namespace mxort::provider
