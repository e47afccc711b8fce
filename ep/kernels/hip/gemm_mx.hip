// The tiled and the skinny GEMM on the scaled matrix instruction of gfx950: one kernel per activation format and tile.
// select.cc lists them for the host.
#if defined(__gfx950__)
#include "kernels/hip/gemm.h"
#include "kernels/hip/mma_gfx950.h"
#include "kernels/hip/skinny.h"

using namespace mxort::hip;

#define MXORT_GEMM(format, operand, tile, waves_m, waves_n, frag_m, frag_n, steps, stages)          \
  MXORT_KERNEL(64 * waves_m * waves_n, 1, 1) gemm_##format##_##tile(GemmArgs args) {                \
    Gemm<Tile<ScaledMma<Operand::operand>, waves_m, waves_n, frag_m, frag_n, steps, stages>>(args); \
  }
// Stages: as many as fit 160 KiB of LDS, at most 4.
#define MXORT_FORMAT(format, operand, stages)                                \
  MXORT_GEMM(format, operand, 256x256, 2, 2, 8, 8, 1, stages)                \
  MXORT_GEMM(format, operand, 128x128, 2, 2, 4, 4, 2, stages)                \
  MXORT_GEMM(format, operand, 64x64, 2, 2, 2, 2, 2, 4)                       \
  MXORT_KERNEL(64 * kSkinnyWaves, 4) gemm_##format##_skinny(GemmArgs args) { \
    Skinny<ScaledMma<Operand::operand>>(args);                               \
  }
MXORT_FORMAT(fp4, kFp4, 4)
MXORT_FORMAT(e2m3, kFp6E2M3, 3)
MXORT_FORMAT(e3m2, kFp6E3M2, 3)
MXORT_FORMAT(e4m3, kFp8E4M3, 3)
#endif
