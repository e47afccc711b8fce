// Matrix instructions of gfx950 as policies of the tiled GEMM (gemm.h).
//
// The weights are the instruction's A operand (its rows are output columns) and the activations its B operand, so that
// a lane accumulates consecutive output columns. A policy says what a step of 128 k is cut into (kParts: how many groups
// of registers hold an activation fragment, each used on its own) and multiplies one part.
#ifndef MXORT_KERNELS_HIP_MMA_GFX950_H_
#define MXORT_KERNELS_HIP_MMA_GFX950_H_

#include "kernels/hip/layout.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/prelude.h"

namespace mxort::hip {

// v_mfma_scale_f32_16x16x128_f8f6f4: FP4 weights times activations of any OCP MX format, scales applied by the instruction.
template <Operand kFormat>
struct ScaledMma {
  static constexpr Operand kOperand = kFormat;
  static constexpr int kParts = 1;
  // cbsz / blgp codes of the instruction: 0 E4M3, 2 E2M3, 3 E3M2, 4 E2M1.
  static constexpr int kWeightCode = 4;
  static constexpr int kActivationCode =
      kFormat == Operand::kFp4 ? 4 : kFormat == Operand::kFp6E2M3 ? 2 : kFormat == Operand::kFp6E3M2 ? 3 : 0;

  // FP6 fragments are read in pairs: three times 16 bytes a lane, into twelve registers.
  static constexpr int kUnitFragments = LaneBytes(kFormat) == 24 ? 2 : 1;
  static constexpr int kUnitReads = kUnitFragments * LaneBytes(kFormat) / kLaneSlot;

  struct Activation {
    i32x16 v;
  };
  template <int kPart>
  MXORT_DEVICE void Read(Activation& f, u32 at) {
    i32x4 x[kUnitReads];
    Unroll<0, kUnitReads>([&](auto i) __attribute__((always_inline)) {
      x[i.value] = ReadLds<i32x4>(at + i.value * kSlotBytes);
    });
    if constexpr (kUnitReads == 1) {
      f.v = __builtin_shufflevector(x[0], x[0], 0, 1, 2, 3, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    } else if constexpr (kUnitReads == 2) {
      f.v = __builtin_shufflevector(x[0], x[1], 0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    } else {
      const i32x8 low = __builtin_shufflevector(x[0], x[1], 0, 1, 2, 3, 4, 5, 6, 7);
      const i32x8 high = __builtin_shufflevector(x[2], x[2], 0, 1, 2, 3, -1, -1, -1, -1);
      f.v = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -1, -1, -1, -1);
    }
  }

  // kIndex: which fragment of the unit. kWeightByte, kActivationByte: which byte of the scale registers is its scale.
  template <int kPart, int kIndex, int kWeightByte, int kActivationByte>
  MXORT_DEVICE f32x4 Multiply(i32x4 weight, i32 weight_scale, const Activation& a, i32 activation_scale, f32x4 sum) {
    const i32x8 w = __builtin_shufflevector(weight, weight, 0, 1, 2, 3, -1, -1, -1, -1);  // FP4 takes four registers
    constexpr int i = kIndex * 6;
    const i32x8 x = kUnitFragments == 2 ? __builtin_shufflevector(a.v, a.v, i, i + 1, i + 2, i + 3, i + 4, i + 5, -1, -1)
                                        : __builtin_shufflevector(a.v, a.v, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(w, x, sum, kWeightCode, kActivationCode, kWeightByte,
                                                            weight_scale, kActivationByte, activation_scale);
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_MMA_GFX950_H_
