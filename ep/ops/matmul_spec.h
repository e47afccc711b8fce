// What the operators MatMulMXFP4, MXFP6, MXFP8 and MXINT8 accept, independent of any runtime: attributes and shapes,
// with one-line errors.
#ifndef MXORT_OPS_MATMUL_SPEC_H_
#define MXORT_OPS_MATMUL_SPEC_H_

#include <cstdint>
#include <string>

#include "kernels/epilogue.h"
#include "kernels/kernel.h"
#include "ops/spec.h"

namespace mxort {

inline constexpr const char* kMatMulName = "MatMulMXFP4";
inline constexpr const char* kExpertsName = "MoEMXFP4";

// One operator for each kind and width of the weights' elements. The attribute exponent_bits tells those of one width
// apart.
struct WeightOperator {
  std::string name;
  std::vector<WeightFormat> formats;  // the default first
  bool activated = false;             // FusedMatMulMX*, GatedMatMulMX*: an attribute `activation`
  size_t operands = 1;                // GatedMatMulMX*: of the gate, and what that is multiplied with
};
const std::vector<WeightOperator>& MatMulOperators();
const std::vector<WeightOperator>& GatherOperators();
const WeightOperator& Mxfp4Operator();  // the one that GPUs run

// The operator's format by the node's attribute exponent_bits. Throws std::invalid_argument.
WeightFormat FormatOf(const WeightOperator& op, const Attributes& node);
int64_t ExponentBits(WeightFormat format);
// The operator's attribute `activation`; kNone for an operator without. Throws std::invalid_argument.
Activation ActivationOf(const WeightOperator& op, const Attributes& node);
// The format of that name. Throws std::invalid_argument.
WeightFormat WeightFormatOf(const std::string& name);
std::vector<std::string> WeightFormatNames();

// The attributes as the model gives them, and the format that the operator means.
struct MatMulAttributes {
  int64_t K = 0;
  int64_t N = 0;
  int64_t rotation = 1;
  std::string activation_format = "none";
  int64_t accuracy_level = 0;
  WeightFormat weight_format = WeightFormat::kMxfp4;
};

// Throws std::invalid_argument for an attribute that is missing or of a wrong type; values are for CheckAttributes.
MatMulAttributes ReadAttributes(const Attributes& node, const WeightOperator& op);

// Throws std::invalid_argument "attribute X: got Y, expected Z".
MatMulSpec CheckAttributes(const MatMulAttributes& attributes);

enum Input { kA, kB, kBScale, kColumnScale, kBias, kInputs };
inline constexpr const char* kInputNames[kInputs] = {"A", "B", "B_scale", "column_scale", "bias"};

// Input 0 is A; the others follow for one operand after the other.
inline size_t InputIndex(size_t operand, size_t input) { return operand * (kInputs - 1) + input; }
inline size_t InputCount(const WeightOperator& op) { return InputIndex(op.operands, 1); }
inline Input InputOf(size_t index) { return index == kA ? kA : static_cast<Input>((index - 1) % (kInputs - 1) + 1); }

// Both throw std::invalid_argument "input X: got shape Y, expected Z". CheckInput is for every input but A.
void CheckInput(const MatMulSpec& spec, Input input, const Shape& shape);
Shape OutputShape(const MatMulSpec& spec, Shape a);

}  // namespace mxort

#endif  // MXORT_OPS_MATMUL_SPEC_H_
