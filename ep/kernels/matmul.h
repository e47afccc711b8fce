// The MatMul operators on the CPU: chosen kernel, work split over the caller's threads.
#ifndef MXORT_KERNELS_MATMUL_H_
#define MXORT_KERNELS_MATMUL_H_

#include "kernels/epilogue.h"
#include "kernels/kernel.h"
#include "kernels/kernel_table.h"
#include "kernels/packed_weights.h"
#include "kernels/parallel.h"

namespace mxort {

// A weight, and what its product is multiplied with and added to.
struct MatMulOperand {
  const PackedWeights* packed;  // in the kernels' layout
  Weights weights;              // as the operator received them, for rows that the kernel declines
  const float* column_scale;    // [N]
  const float* bias;            // [N]
};

// What becomes of a product before it is stored: activation(product), times another product of A.
struct Epilogue {
  Activate activate = nullptr;  // null: none
  Activation activation = Activation::kNone;
  const MatMulOperand* factor = nullptr;  // may be null
};

// One call of the operator.
struct MatMulCall {
  const MatMulSpec* spec;  // of the factor too
  const Kernels* kernels;
  MatMulOperand operand;
  DataType type;
  int64_t M;
  const void* a;  // [M, K]
  void* y;        // [M, N]
  Epilogue epilogue;
};
void MatMul(const MatMulCall& call, const ParallelFor& parallel);

}  // namespace mxort

#endif  // MXORT_KERNELS_MATMUL_H_
