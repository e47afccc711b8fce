// The problem of the self-checks, of CPU kernels and of GPU kernels: small, fixed, and the same on every machine.
#ifndef MXORT_KERNELS_CHECK_PROBLEM_H_
#define MXORT_KERNELS_CHECK_PROBLEM_H_

#include <cstdint>
#include <vector>

#include "kernels/kernel.h"

namespace mxort {

// Operands of a MatMulMXFP4 with `m` rows, numbers that look random; those of A are of `type`.
struct CheckProblem {
  CheckProblem(const MatMulSpec& spec, int64_t m, DataType type = DataType::kFloat);
  Weights weights() const { return {codes.data(), scales.data()}; }
  // Rows [begin, end) of Y in double precision, rounded to float, at their place in `y` [m, N].
  void Expected(Range rows, float* y) const;

  MatMulSpec spec;
  int64_t m;
  std::vector<uint8_t> codes, scales;
  std::vector<float> a;  // [m, K]
  std::vector<float> column_scale, bias;
};

// What docs/format.md promises of activation_format "none": relative RMS error.
double PromisedError(AccuracyLevel level);

}  // namespace mxort

#endif  // MXORT_KERNELS_CHECK_PROBLEM_H_
