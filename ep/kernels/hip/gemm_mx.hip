// The tiled GEMM on the scaled matrix instruction of gfx950: one kernel per activation format and tile.
#if defined(__gfx950__)
#include "kernels/hip/gemm.h"
#include "kernels/hip/mma_gfx950.h"

using namespace mxort::hip;

#define MXORT_GEMM(name, operand, waves_m, waves_n, frag_m, frag_n, steps, stages)                              \
  MXORT_KERNEL(64 * waves_m * waves_n, 1)                                                                       \
  name(GemmArgs args) {                                                                                         \
    Gemm<Tile<ScaledMma<Operand::operand>, waves_m, waves_n, frag_m, frag_n, steps, stages>>(args);             \
  }
MXORT_GEMM(gemm_fp4_256x256, kFp4, 2, 2, 8, 8, 1, 4)
MXORT_GEMM(gemm_e2m3_256x256, kFp6E2M3, 2, 2, 8, 8, 1, 3)
MXORT_GEMM(gemm_e3m2_256x256, kFp6E3M2, 2, 2, 8, 8, 1, 3)
MXORT_GEMM(gemm_e4m3_256x256, kFp8E4M3, 2, 2, 8, 8, 1, 3)

MXORT_GEMM(gemm_fp4_128x128, kFp4, 2, 2, 4, 4, 2, 4)
MXORT_GEMM(gemm_e2m3_128x128, kFp6E2M3, 2, 2, 4, 4, 2, 3)
MXORT_GEMM(gemm_e3m2_128x128, kFp6E3M2, 2, 2, 4, 4, 2, 3)
MXORT_GEMM(gemm_e4m3_128x128, kFp8E4M3, 2, 2, 4, 4, 2, 3)

MXORT_GEMM(gemm_fp4_64x64, kFp4, 2, 2, 2, 2, 2, 4)
MXORT_GEMM(gemm_e2m3_64x64, kFp6E2M3, 2, 2, 2, 2, 2, 4)
MXORT_GEMM(gemm_e3m2_64x64, kFp6E3M2, 2, 2, 2, 2, 2, 4)
MXORT_GEMM(gemm_e4m3_64x64, kFp8E4M3, 2, 2, 2, 2, 2, 4)
#endif
