// What the policies of the tiled GEMM with bf16 activations share: a part is 16 bytes a lane, 8 k of its block.
#ifndef MXORT_KERNELS_HIP_MMA_BF16_H_
#define MXORT_KERNELS_HIP_MMA_BF16_H_

#include "kernels/hip/layout.h"
#include "kernels/hip/prelude.h"
#include "mx_formats.h"

namespace mxort::hip {

struct BFloat16Activations {
  static constexpr Operand kOperand = Operand::kBf16;
  static constexpr int kParts = 4, kUnitFragments = 1, kUnitReads = 1;
  struct Activation {
    i32x4 v;
  };
  template <int kSlot>
  MXORT_DEVICE void Insert(Activation& a, i32x4 x) {
    a.v = x;
  }

  // Weights on their way: two floats that are bf16 numbers, and two NaNs.
  MXORT_DEVICE u32 UpperHalves(float even, float odd) {
    return __builtin_amdgcn_perm(FloatBits(odd), FloatBits(even), 0x07060302);
  }
  static constexpr u32 kNaNs = 0x7FC07FC0;
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_MMA_BF16_H_
