// Products of a mixture of experts on bf16 matrix instructions, both architectures.
#include "kernels/hip/experts_gemm.h"
#if defined(__gfx950__)
#include "kernels/hip/mma_gfx950.h"
#elif defined(__gfx942__)
#include "kernels/hip/mma_gfx942.h"
#endif

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

#if defined(__gfx950__)
inline constexpr int kStages = 3;  // as gemm_bf16.hip
#else
inline constexpr int kStages = 2;
#endif
MXORT_KERNEL(256, 1, 2) experts_bf16_64x128(ExpertsGemmArgs args) {
  ExpertsGemm<Tile<BFloat16Mma, 2, 2, 2, 4, 1, kStages>>(args);
}
MXORT_KERNEL(64 * kSkinnyWaves, 2) experts_bf16_up(ExpertsGemmArgs args) { ExpertsUp<BFloat16Mma>(args); }
MXORT_KERNEL(kDownThreads, 4) experts_bf16_down(ExpertsGemmArgs args) { ExpertsDown<BFloat16Mma>(args); }
#endif
