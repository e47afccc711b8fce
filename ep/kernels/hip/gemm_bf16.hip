// The tiled and the skinny GEMM on bf16 matrix instructions, both architectures: activations as a sum of bf16 terms.
#include "kernels/hip/gemm.h"
#include "kernels/hip/skinny.h"
#if defined(__gfx950__)
#include "kernels/hip/mma_gfx950.h"
#elif defined(__gfx942__)
#include "kernels/hip/mma_gfx942.h"
#endif

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

#if defined(__gfx950__)
inline constexpr int kStages = 3;  // two workgroups share the LDS of a compute unit
#else
inline constexpr int kStages = 2;  // 64 KiB of LDS
#endif
MXORT_KERNEL(256, 1, 2) gemm_bf16_64x128(GemmArgs args) { Gemm<Tile<BFloat16Mma, 2, 2, 2, 4, 1, kStages>>(args); }
MXORT_KERNEL(64 * kSkinnyWaves, 2) gemm_bf16_skinny(GemmArgs args) { Skinny<BFloat16Mma>(args); }
#endif
