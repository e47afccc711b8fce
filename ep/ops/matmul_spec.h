// What the operator MatMulMXFP4 accepts, independent of any runtime: attributes and shapes, with one-line errors.
#ifndef MXORT_OPS_MATMUL_SPEC_H_
#define MXORT_OPS_MATMUL_SPEC_H_

#include <cstdint>
#include <string>

#include "kernels/kernel.h"
#include "ops/spec.h"

namespace mxort {

inline constexpr const char* kMatMulName = "MatMulMXFP4";

// The attributes as the model gives them.
struct MatMulAttributes {
  int64_t K = 0;
  int64_t N = 0;
  int64_t rotation = 1;
  std::string activation_format = "none";
  int64_t accuracy_level = 0;
};

// Throws std::invalid_argument "attribute X: got Y, expected Z".
MatMulSpec CheckAttributes(const MatMulAttributes& attributes);

enum Input { kA, kB, kBScale, kColumnScale, kBias, kInputs };

// Both throw std::invalid_argument "input X: got shape Y, expected Z". CheckInput is for every input but A.
void CheckInput(const MatMulSpec& spec, Input input, const Shape& shape);
Shape OutputShape(const MatMulSpec& spec, Shape a);

}  // namespace mxort

#endif  // MXORT_OPS_MATMUL_SPEC_H_
