// The tiled GEMM on the scaled matrix instruction of gfx950.
#include "kernels/hip/gemm.h"
#if defined(__gfx950__)
#include "kernels/hip/mma_gfx950.h"

using namespace mxort::hip;

#define MXORT_GEMM(name, operand, waves_m, waves_n, frag_m, frag_n, steps, stages)                              \
  MXORT_KERNEL(64 * waves_m * waves_n, 1)                                                                       \
  name(GemmArgs args) {                                                                                         \
    Gemm<Tile<ScaledMma<Operand::operand>, waves_m, waves_n, frag_m, frag_n, steps, stages>>(args);             \
  }
MXORT_GEMM(gemm_fp4_256x256, kFp4, 2, 2, 8, 8, 1, 4)
#endif
