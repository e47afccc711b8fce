// Matrix instructions of gfx950 as policies of the tiled GEMM (gemm.h).
//
// The weights are the instruction's A operand (its rows are output columns) and the activations its B operand, so that
// a lane accumulates consecutive output columns. A policy says what a step of 128 k is cut into (kParts: how many
// groups of registers hold an activation fragment, each used on its own) and multiplies one part.
#ifndef MXORT_KERNELS_HIP_MMA_GFX950_H_
#define MXORT_KERNELS_HIP_MMA_GFX950_H_

#include "kernels/hip/layout.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/mma_bf16.h"
#include "kernels/hip/prelude.h"
#include "mx_formats.h"

namespace mxort::hip {

// v_mfma_scale_f32_16x16x128_f8f6f4: FP4 weights times activations of any OCP MX format, scales applied by the
// instruction.
template <Operand kFormat>
struct ScaledMma {
  static constexpr Operand kOperand = kFormat;
  static constexpr WeightCode kWeight = WeightCode::kFp4;
  static constexpr int kParts = 1;
  // cbsz / blgp codes of the instruction: 0 E4M3, 2 E2M3, 3 E3M2, 4 E2M1.
  static constexpr int kWeightCode = 4;
  static constexpr int kActivationCode = kFormat == Operand::kFp4       ? 4
                                         : kFormat == Operand::kFp6E2M3 ? 2
                                         : kFormat == Operand::kFp6E3M2 ? 3
                                                                        : 0;

  // FP6 fragments are read in pairs: three times 16 bytes a lane, into twelve registers.
  static constexpr int kUnitFragments = LaneBytes(kFormat) == 24 ? 2 : 1;
  static constexpr int kUnitReads = kUnitFragments * LaneBytes(kFormat) / kLaneSlot;

  struct Activation {
    i32x16 v;
  };
  // A unit is read slot by slot, 16 bytes a lane each.
  template <int kSlot>
  MXORT_DEVICE void Insert(Activation& a, i32x4 x) {
    const i32x16 y = __builtin_shufflevector(x, x, 0, 1, 2, 3, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    if constexpr (kSlot == 0 && kUnitReads == 1) a.v = y;
    if constexpr (kSlot == 0 && kUnitReads > 1) {
      a.v = __builtin_shufflevector(y, a.v, 0, 1, 2, 3, 20, 21, 22, 23, 24, 25, 26, 27, -1, -1, -1, -1);
    }
    if constexpr (kSlot == 1) {
      a.v = __builtin_shufflevector(a.v, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, -1, -1, -1, -1);
    }
    if constexpr (kSlot == 2) {
      a.v = __builtin_shufflevector(a.v, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, -1, -1, -1, -1);
    }
  }

  // kIndex: which fragment of the unit. kWeightByte, kActivationByte: which byte of the scale registers is its scale.
  template <int kPart, int kIndex, int kWeightByte, int kActivationByte>
  MXORT_DEVICE f32x4 Multiply(i32x4 weight, i32 weight_scale, const Activation& a, i32 activation_scale, f32x4 sum) {
    const i32x8 w = __builtin_shufflevector(weight, weight, 0, 1, 2, 3, -1, -1, -1, -1);  // FP4 takes four registers
    constexpr int i = kIndex * 6;
    const i32x8 x = kUnitFragments == 2
                        ? __builtin_shufflevector(a.v, a.v, i, i + 1, i + 2, i + 3, i + 4, i + 5, -1, -1)
                        : __builtin_shufflevector(a.v, a.v, 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(w, x, sum, kWeightCode, kActivationCode, kWeightByte,
                                                            weight_scale, kActivationByte, activation_scale);
  }
};

// v_mfma_f32_16x16x32_bf16 with the weights decoded, scale included, on the way to it. A part is 32 k: k 8j .. 8j + 7
// of every lane's block.
struct BFloat16Mma : BFloat16Activations {
  static constexpr WeightCode kWeight = WeightCode::kFp4;

  typedef __bf16 bf16x2 __attribute__((ext_vector_type(2)));
  typedef __bf16 bf16x8 __attribute__((ext_vector_type(8)));

  template <int kPart, int kIndex, int kWeightByte, int kActivationByte>
  MXORT_DEVICE f32x4 Multiply(i32x4 weight, i32 weight_scale, const Activation& a, i32, f32x4 sum) {
    const u32 byte = static_cast<u32>(weight_scale) >> (8 * kWeightByte) & 0xFF;
    const u32 codes = static_cast<u32>(weight[kPart]);
    // The conversion takes the exponent bits of its scale operand; what it makes of 255 is not documented for certain,
    // hence the explicit NaN.
    const float scale = __builtin_bit_cast(float, byte << 23);
    i32x4 w;
    w[0] = Pair(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(codes, scale, 0), byte);
    w[1] = Pair(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(codes, scale, 1), byte);
    w[2] = Pair(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(codes, scale, 2), byte);
    w[3] = Pair(__builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(codes, scale, 3), byte);
    return __builtin_amdgcn_mfma_f32_16x16x32_bf16(__builtin_bit_cast(bf16x8, w), __builtin_bit_cast(bf16x8, a.v), sum,
                                                   0, 0, 0);
  }
  MXORT_DEVICE i32 Pair(bf16x2 x, u32 scale) {
    return scale == kScaleNaN ? static_cast<i32>(kNaNs) : __builtin_bit_cast(i32, x);
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_MMA_GFX950_H_
