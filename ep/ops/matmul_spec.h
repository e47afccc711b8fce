// What the operator MatMulMXFP4 accepts, independent of any runtime: attributes and shapes, with one-line errors.
#ifndef MXORT_OPS_MATMUL_SPEC_H_
#define MXORT_OPS_MATMUL_SPEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernel.h"

namespace mxort {

inline constexpr const char* kDomain = "mxort";
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

using Shape = std::vector<int64_t>;

// Throws std::invalid_argument "input X: got shape Y, expected Z". Returns the shape of the output.
Shape CheckShapes(const MatMulSpec& spec, const Shape& a, const Shape& b, const Shape& b_scale,
                  const Shape& column_scale, const Shape& bias);

}  // namespace mxort

#endif  // MXORT_OPS_MATMUL_SPEC_H_
