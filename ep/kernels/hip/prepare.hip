// Kernels around the GEMM: A to records, the sum of split-K, and what follows a product.
#include "kernels/hip/activate.h"
#include "kernels/hip/prepare.h"
#include "kernels/hip/reduce.h"

using namespace mxort::hip;

#define MXORT_PREPARE(name, ...) \
  MXORT_KERNEL(256, 2) name(PrepareArgs args) { __VA_ARGS__(args); }

#if defined(__gfx950__)
MXORT_PREPARE(prepare_fp4, PrepareQuantized<mxort::E2M1, Operand::kFp4, 1>)
MXORT_PREPARE(prepare_e2m3, PrepareQuantized<mxort::E2M3, Operand::kFp6E2M3, 1>)
MXORT_PREPARE(prepare_e3m2, PrepareQuantized<mxort::E3M2, Operand::kFp6E3M2, 1>)
MXORT_PREPARE(prepare_e4m3, PrepareQuantized<mxort::E4M3, Operand::kFp8E4M3, 1>)
MXORT_PREPARE(prepare_e2m3x2, PrepareQuantized<mxort::E2M3, Operand::kFp6E2M3, 2>)
#endif
#if defined(__gfx950__) || defined(__gfx942__)
MXORT_PREPARE(prepare_fp4_bf16, PrepareEmulated<mxort::E2M1>)
MXORT_PREPARE(prepare_e2m3_bf16, PrepareEmulated<mxort::E2M3>)
MXORT_PREPARE(prepare_e3m2_bf16, PrepareEmulated<mxort::E3M2>)
MXORT_PREPARE(prepare_e4m3_bf16, PrepareEmulated<mxort::E4M3>)
MXORT_PREPARE(prepare_bf16, PrepareBFloat16)
MXORT_KERNEL(256, 4) reduce(ReduceArgs args) { Reduce(args); }
MXORT_KERNEL(256, 4) activate(ActivateArgs args) { Activate(args); }
#endif
