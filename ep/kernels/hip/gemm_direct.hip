// The products of a decode step in one launch: 16 rows, prepared by the kernel, times 16 or 64 columns.
#include "kernels/hip/direct.h"
#include "kernels/hip/mma_byte.h"
#if defined(__gfx950__)
#include "kernels/hip/mma_gfx950.h"
#elif defined(__gfx942__)
#include "kernels/hip/mma_gfx942.h"
#endif

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

#define MXORT_DIRECT(name, ...)                                                                          \
  MXORT_KERNEL(kDirectThreads, 2) gemm_##name##_16x16(DirectArgs args) { Direct<__VA_ARGS__, 1>(args); } \
  MXORT_KERNEL(kDirectThreads, 2) gemm_##name##_16x64(DirectArgs args) { Direct<__VA_ARGS__, 4>(args); }
#if defined(__gfx950__)
MXORT_DIRECT(fp4, ScaledMma<Operand::kFp4>)
MXORT_DIRECT(e2m3, ScaledMma<Operand::kFp6E2M3>)
MXORT_DIRECT(e3m2, ScaledMma<Operand::kFp6E3M2>)
MXORT_DIRECT(e4m3, ScaledMma<Operand::kFp8E4M3>)
#endif
MXORT_DIRECT(bf16, BFloat16Mma)
MXORT_DIRECT(int8w, ByteMma<WeightCode::kInt8>)
MXORT_DIRECT(fp8w, ByteMma<WeightCode::kE4M3>)
#endif
