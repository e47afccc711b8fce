// Products of a mixture of experts on the scaled matrix instruction of gfx950. select_experts.cc lists them.
#if defined(__gfx950__)
#include "kernels/hip/experts_gemm.h"
#include "kernels/hip/mma_gfx950.h"

using namespace mxort::hip;

#define MXORT_EXPERTS_GEMM(format, operand, tile, waves_m, waves_n, frag_m, frag_n, steps, stages)         \
  MXORT_KERNEL(64 * waves_m * waves_n, 1, 1) experts_##format##_##tile(ExpertsGemmArgs args) {             \
    ExpertsGemm<Tile<ScaledMma<Operand::operand>, waves_m, waves_n, frag_m, frag_n, steps, stages>>(args); \
  }
// The tiles of gemm_mx.hip.
#define MXORT_EXPERTS_FORMAT(format, operand, stages)                              \
  MXORT_EXPERTS_GEMM(format, operand, 256x256, 2, 2, 8, 8, 1, stages)              \
  MXORT_EXPERTS_GEMM(format, operand, 128x128, 2, 2, 4, 4, 2, stages)              \
  MXORT_EXPERTS_GEMM(format, operand, 64x64, 2, 2, 2, 2, 2, 4)                     \
  MXORT_KERNEL(64 * kSkinnyWaves, 4) experts_##format##_up(ExpertsGemmArgs args) { \
    ExpertsUp<ScaledMma<Operand::operand>>(args);                                  \
  }                                                                                \
  MXORT_KERNEL(kDownThreads, 4) experts_##format##_down(ExpertsGemmArgs args) {    \
    ExpertsDown<ScaledMma<Operand::operand>>(args);                                \
  }
MXORT_EXPERTS_FORMAT(fp4, kFp4, 4)
MXORT_EXPERTS_FORMAT(e2m3, kFp6E2M3, 3)
MXORT_EXPERTS_FORMAT(e3m2, kFp6E3M2, 3)
MXORT_EXPERTS_FORMAT(e4m3, kFp8E4M3, 3)
#endif
