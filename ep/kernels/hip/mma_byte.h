// Weights of a byte a code (MXINT8, MXFP8, and MXFP6 as the latter) on bf16 matrix instructions, both architectures, as
// a policy of skinny.h and byte_tile.h. A code has at most 8 significant bits, so code times scale is exact in bf16:
// beyond its range, which ends where float's does, it is what a float would be, and it keeps 2^-133 apart from zero.
#ifndef MXORT_KERNELS_HIP_MMA_BYTE_H_
#define MXORT_KERNELS_HIP_MMA_BYTE_H_

#include "kernels/hip/mma_bf16.h"
#include "kernels/hip/product_mma.h"

namespace mxort::hip {

template <WeightCode kCode>
struct ByteMma : BFloat16Activations {
  static constexpr WeightCode kWeight = kCode;

#if defined(__gfx950__)
  // Codes number kByte and kByte + 1 of four as bf16. The instruction takes the exponent bits of its scale; what it
  // makes of 255 is not documented for certain, hence the explicit NaN.
  template <int kByte>
  MXORT_DEVICE u32 Fp8Pair(u32 codes, u8 scale) {
    const float power = BitsFloat(u32{scale} << kFloatMantissaBits);
    const u32 pair = __builtin_bit_cast(u32, __builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(codes, power, kByte / 2 != 0));
    return scale == kScaleNaN ? kNaNs : pair;
  }
#else
  // gfx942 knows another E4M3. Bits of a float whose exponent counts from float's bias instead of E4M3's; subnormals
  // are float's too. Every step is exact, so the upper halves are all there is.
  MXORT_DEVICE float Fp8(u32 code) {
    constexpr u32 kNaN = E4M3::kFirstSpecial;
    const u32 magnitude = code & 0x7F, sign = (code & 0x80) << 24;
    const u32 bits = magnitude == kNaN ? kFloatNaN : magnitude << (kFloatMantissaBits - E4M3::kMantissaBits) | sign;
    return BitsFloat(bits) * 0x1p120f;
  }
  template <int kByte>
  MXORT_DEVICE u32 Fp8Pair(u32 codes, u8 scale) {
    const float power = DecodeScale(scale);
    return UpperHalves(Fp8(codes >> (8 * kByte) & 0xFF) * power, Fp8(codes >> (8 * kByte + 8) & 0xFF) * power);
  }
#endif
  template <int kByte>
  MXORT_DEVICE float Int8(u32 codes) {
    return static_cast<float>(static_cast<signed char>(codes >> (8 * kByte) & 0xFF));
  }
  template <int kByte>
  MXORT_DEVICE u32 Pair(u32 codes, u8 scale) {
    if constexpr (kCode == WeightCode::kE4M3) return Fp8Pair<kByte>(codes, scale);
    const float unit = DecodeScale(scale) * 0x1p-6f;  // exact, as is the product
    return UpperHalves(Int8<kByte>(codes) * unit, Int8<kByte + 1>(codes) * unit);
  }

  // A part is 8 k of every lane's block; `weight` is the slot that holds them.
  template <int kPart, int kIndex, int kWeightByte, int kActivationByte>
  MXORT_DEVICE f32x4 Multiply(i32x4 weight, i32 weight_scale, const Activation& a, i32, f32x4 sum) {
    constexpr int i = kPart % 2 * 2;
    const u8 scale = static_cast<u8>(static_cast<u32>(weight_scale) >> (8 * kWeightByte));
    const u32 low = static_cast<u32>(weight[i]), high = static_cast<u32>(weight[i + 1]);
    const u32x4 w = {Pair<0>(low, scale), Pair<2>(low, scale), Pair<0>(high, scale), Pair<2>(high, scale)};
    return MultiplyChunks<Type::kBFloat16>(w, __builtin_bit_cast(u32x4, a.v), sum);
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_MMA_BYTE_H_
