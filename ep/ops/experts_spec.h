// What MoEMXFP4 accepts, independent of any runtime: attributes and shapes, with one-line errors.
#ifndef MXORT_OPS_EXPERTS_SPEC_H_
#define MXORT_OPS_EXPERTS_SPEC_H_

#include <array>
#include <string>

#include "kernels/experts.h"
#include "ops/matmul_spec.h"

namespace mxort {

enum ExpertsInput { kX, kRouter, kWeights, kExpertsInputs = kWeights + 8 };
// Of a product, from kWeights on for one after the other.
enum Part { kCodes, kScales, kColumnScales, kBiases, kParts };
inline constexpr size_t kProducts = 2;

inline size_t ExpertsIndex(size_t product, size_t part) { return kWeights + product * kParts + part; }
std::string ExpertsInputName(size_t product, size_t part);  // "gate_up_B_scale"

// By product and part; empty: not known.
using ExpertsShapes = std::array<std::array<Shape, kParts>, kProducts>;

// The node's attributes, and what the shapes of its weights add to them. All throw std::invalid_argument.
class ExpertsAttributes {
 public:
  explicit ExpertsAttributes(const Attributes& node);
  // Of one product with K and N that any shape may have: what kernels are chosen by before the shapes are known.
  const MatMulSpec& product() const { return product_; }
  // The shapes of the codes must be known; those that are known are checked.
  ExpertsSpec SpecOf(const ExpertsShapes& shapes) const;

 private:
  void ReadSpec(const Attributes& node);

  ExpertsSpec spec_;
  MatMulAttributes attributes_;
  MatMulSpec product_;
};

// Rows of X, which the router's logits must fit.
int64_t CheckExpertsRows(const ExpertsSpec& spec, const Shape& x, const Shape& router);

}  // namespace mxort

#endif  // MXORT_OPS_EXPERTS_SPEC_H_
