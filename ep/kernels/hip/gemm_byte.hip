// Products with weights of MXINT8, MXFP8 and MXFP6, both architectures: activations as a sum of bf16 terms.
#include "kernels/hip/byte_tile.h"
#include "kernels/hip/mma_byte.h"
#include "kernels/hip/skinny.h"

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

#define MXORT_BYTE(name, code)                                                                           \
  MXORT_KERNEL(256, 2) gemm_##name##_64x64(GemmArgs args) { ByteTile<ByteMma<WeightCode::code>>(args); } \
  MXORT_KERNEL(64 * kSkinnyWaves, 2) gemm_##name##_skinny(GemmArgs args) { Skinny<ByteMma<WeightCode::code>>(args); }
MXORT_BYTE(int8w, kInt8)
MXORT_BYTE(fp8w, kE4M3)
#endif
