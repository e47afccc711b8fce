// Operators that compute every element of their output from the elements at its place in up to three inputs.
#include <array>
#include <limits>
#include <utility>

#include "device/strided.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

using hip::Function;

enum class Form {
  kPlain,     // inputs in order, at most three
  kVariadic,  // any number of inputs, two at a time
};

struct PointwiseRow {
  const char* domain;
  const char* type;
  int since;
  Function function;
  std::vector<std::pair<const char*, Types>> constraints;
  // a and b of the function (args_strided.h) from the node's attributes; null: it has none.
  std::array<float, 2> (*parameters)(const NodeInfo& node) = nullptr;
  Form form = Form::kPlain;
};

bool IsFloat(ONNXTensorElementDataType type) {
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ||
         type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
}

class PointwiseNode : public NodeKernel {
 public:
  PointwiseNode(const NodeInfo& node, const PointwiseRow& row) : NodeKernel(node), form_(row.form) {
    const std::array<float, 2> p = row.parameters ? row.parameters(node) : std::array<float, 2>{};
    // Whole numbers are computed as such; a float on either side makes it a function of floats.
    bool whole = !IsFloat(node.OutputType(0));
    for (size_t i = 0; i < node.Inputs(); ++i) whole = whole && !IsFloat(node.InputType(i));
    const bool tanh = row.function == Function::kGelu && node.String("approximate", "none") == "tanh";
    Check(device::Pointwise::Load(ep().device(), tanh ? Function::kGeluTanh : row.function, whole, p[0], p[1],
                                  &pointwise_));
  }

 private:
  void Run(NodeCall& call) override {
    std::vector<device::Operand> in(call.Inputs());
    Shape shape;
    for (size_t i = 0; i < in.size(); ++i) {
      if (!call.Has(i)) continue;
      const Tensor tensor = call.Input(i);
      in[i] = {tensor.data, call.TypeOf(tensor), tensor.shape};
      const Shape before = shape;
      if (device::Broadcast(before, tensor.shape, &shape)) continue;
      Fail("input " + std::to_string(i), "shape " + Text(tensor.shape), "one that broadcasts with " + Text(before));
    }
    const Tensor out = call.Output(0, shape);
    if (!out.data) return;
    const auto launch = [&](const device::Operand& x, const device::Operand& y, const device::Operand& z) {
      Check(pointwise_.Launch(call.stream(), {x, y, z}, out.data, call.TypeOf(out), shape));
    };
    if (form_ == Form::kPlain) {
      in.resize(3);
      launch(in[0], in[1], in[2]);
    } else if (in.size() == 1) {
      call.Copy(out.data, in[0].data, BytesOf(out));
    } else {
      launch(in[0], in[1], {});
      for (size_t i = 2; i < in.size(); ++i) launch({out.data, call.TypeOf(out), shape}, in[i], {});
    }
  }

  const Form form_;
  device::Pointwise pointwise_;
};

std::array<float, 2> AlphaBeta(const NodeInfo& node, float alpha, float beta) {
  return {node.Float("alpha", alpha), node.Float("beta", beta)};
}

std::vector<PointwiseRow> Table() {
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
       [](const NodeInfo& node) -> std::array<float, 2> {
         return {static_cast<float>(node.Int("detect_negative", 1)),
                 static_cast<float>(node.Int("detect_positive", 1))};
       }},
      {"", "LeakyRelu", 6, Function::kLeakyRelu, of_floats,
       [](const NodeInfo& node) { return AlphaBeta(node, 0.01f, 0.0f); }},
      {"", "Elu", 6, Function::kElu, of_floats, [](const NodeInfo& node) { return AlphaBeta(node, 1.0f, 0.0f); }},
      {"", "HardSigmoid", 6, Function::kHardSigmoid, of_floats,
       [](const NodeInfo& node) { return AlphaBeta(node, 0.2f, 0.5f); }},
      {"", "HardSwish", 14, Function::kHardSwish, of_floats,
       [](const NodeInfo&) -> std::array<float, 2> { return {1.0f / 6.0f, 0.5f}; }},
      {"", "Swish", 24, Function::kSwish, of_floats, [](const NodeInfo& node) { return AlphaBeta(node, 1.0f, 0.0f); }},
      {"", "Mish", 18, Function::kMish, of_floats},
      {"", "Gelu", 20, Function::kGelu, of_floats},
      {"", "PRelu", 7, Function::kPRelu, of_floats},
      {"", "Clip", 11, Function::kClip, of_numbers},
      {"", "Add", 7, Function::kAdd, of_numbers},
      {"", "Sub", 7, Function::kSub, of_numbers},
      {"", "Mul", 7, Function::kMul, of_numbers},
      {"", "Div", 7, Function::kDiv, of_numbers},
      {"", "Pow", 7, Function::kPow, of_floats},
      {"", "Min", 8, Function::kMin, of_numbers, nullptr, Form::kVariadic},
      {"", "Max", 8, Function::kMax, of_numbers, nullptr, Form::kVariadic},
      {"", "Sum", 8, Function::kAdd, of_floats, nullptr, Form::kVariadic},
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
       [](const NodeInfo& node) { return AlphaBeta(node, 1.702f, 0.0f); }},
  };
}

}  // namespace

void AddPointwise(Rows& rows) {
  for (const PointwiseRow& row : Table()) {
    rows.push_back({row.domain, row.type, row.since, *row.domain ? 1 : kNewest, row.constraints,
                    [row](const NodeInfo& node) { return std::make_unique<PointwiseNode>(node, row); }});
  }
}

}  // namespace mxort::provider
