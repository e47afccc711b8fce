// Weights of a byte a code (MXINT8, MXFP8, and MXFP6 as the latter) on bf16 matrix instructions, both architectures, as
// a policy of skinny.h and byte_tile.h. A code has at most 8 significant bits, so code times scale is exact in bf16:
// beyond its range, which ends where float's does, it is what a float would be, and it keeps 2^-133 apart from zero.
#ifndef MXORT_KERNELS_HIP_MMA_BYTE_H_
#define MXORT_KERNELS_HIP_MMA_BYTE_H_

#include "kernels/hip/layout.h"
#include "kernels/hip/prelude.h"
#include "kernels/hip/product_mma.h"
#include "mx_formats.h"

namespace mxort::hip {

template <WeightCode kCode>
struct ByteMma {
  static constexpr Operand kOperand = Operand::kBf16;
  static constexpr WeightCode kWeight = kCode;
  static constexpr int kParts = 4, kUnitFragments = 1, kUnitReads = 1;
  struct Activation {
    i32x4 v;
  };
  template <int kSlot>
  MXORT_DEVICE void Insert(Activation& a, i32x4 x) {
    a.v = x;
  }

  // Code number kByte of four: an E4M3 number, or an INT8 one in its units of 2^-6.
  template <int kByte>
  MXORT_DEVICE float Number(u32 codes) {
    const u32 code = codes >> (8 * kByte) & 0xFF;
    if constexpr (kCode == WeightCode::kInt8) {
      return static_cast<float>(static_cast<signed char>(code));
    } else {
      constexpr u32 kNaN = E4M3::kFirstSpecial;
      const u32 magnitude = code & 0x7F, sign = (code & 0x80) << 24;
      // Bits of a float whose exponent counts from float's bias instead of E4M3's; subnormals are float's too.
      const u32 bits = magnitude == kNaN ? kFloatNaN : magnitude << (kFloatMantissaBits - E4M3::kMantissaBits) | sign;
      return BitsFloat(bits) * 0x1p120f;
    }
  }
  // Exact, as every step of it is, so the upper halves are all there is.
  template <int kByte>
  MXORT_DEVICE u32 Pair(u32 codes, float scale) {
    const float even = Number<kByte>(codes) * scale, odd = Number<kByte + 1>(codes) * scale;
    return __builtin_amdgcn_perm(FloatBits(odd), FloatBits(even), 0x07060302);
  }

  // A part is 8 k of every lane's block; `weight` is the slot that holds them.
  template <int kPart, int kIndex, int kWeightByte, int kActivationByte>
  MXORT_DEVICE f32x4 Multiply(i32x4 weight, i32 weight_scale, const Activation& a, i32, f32x4 sum) {
    constexpr int i = kPart % 2 * 2;
    constexpr float kUnit = kCode == WeightCode::kInt8 ? 0x1p-6f : 1.0f;
    const float scale = DecodeScale(static_cast<u8>(static_cast<u32>(weight_scale) >> (8 * kWeightByte))) * kUnit;
    const u32 low = static_cast<u32>(weight[i]), high = static_cast<u32>(weight[i + 1]);
    const u32x4 w = {Pair<0>(low, scale), Pair<2>(low, scale), Pair<0>(high, scale), Pair<2>(high, scale)};
    return MultiplyChunks<Type::kBFloat16>(w, __builtin_bit_cast(u32x4, a.v), sum);
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_MMA_BYTE_H_
