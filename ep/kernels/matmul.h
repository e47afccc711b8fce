// MatMulMXFP4 on the CPU: chosen kernel, work split over the caller's threads.
#ifndef MXORT_KERNELS_MATMUL_H_
#define MXORT_KERNELS_MATMUL_H_

#include "kernels/kernel.h"
#include "kernels/kernel_table.h"
#include "kernels/packed_weights.h"
#include "kernels/parallel.h"

namespace mxort {

// One call of the operator.
struct MatMulCall {
  const MatMulSpec* spec;
  const Kernels* kernels;
  const PackedWeights* packed;  // in the kernels' layout
  Weights weights;              // as the operator received them, for rows that the kernel declines
  const float* column_scale;    // [N]
  const float* bias;            // [N]
  DataType type;
  int64_t M;
  const void* a;  // [M, K]
  void* y;        // [M, N]
};
void MatMul(const MatMulCall& call, const ParallelFor& parallel);

}  // namespace mxort

#endif  // MXORT_KERNELS_MATMUL_H_
