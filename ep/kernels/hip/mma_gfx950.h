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

  struct Activation {
    i32x4 low;
    i32x4 high;  // FP6: two registers of it; FP4: unused
  };

  template <int kPart>
  MXORT_DEVICE void Read(Activation& f, LdsBytes fragment, u32 lane) {
    f.low = ReadLds<i32x4>(fragment, lane * 16);
    if constexpr (LaneBytes(kFormat) == 24) {
      const i32x2 x = ReadLds<i32x2>(fragment + kSlotBytes, lane * 8);
      f.high = __builtin_shufflevector(x, x, 0, 1, -1, -1);
    } else if constexpr (LaneBytes(kFormat) == 32) {
      f.high = ReadLds<i32x4>(fragment + kSlotBytes, lane * 16);
    }
  }

  // kWeightByte, kActivationByte: which byte of the scale registers holds this fragment's scale.
  template <int kPart, int kWeightByte, int kActivationByte>
  MXORT_DEVICE f32x4 Multiply(i32x4 weight, i32 weight_scale, const Activation& a, i32 activation_scale, f32x4 sum) {
    const i32x8 w = __builtin_shufflevector(weight, weight, 0, 1, 2, 3, -1, -1, -1, -1);  // FP4 takes four registers
    const i32x8 x = __builtin_shufflevector(a.low, a.high, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(w, x, sum, kWeightCode, kActivationCode, kWeightByte,
                                                            weight_scale, kActivationByte, activation_scale);
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_MMA_GFX950_H_
