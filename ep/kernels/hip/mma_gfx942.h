// Matrix instructions of gfx942 (MI300X) as a policy of the tiled GEMM: bf16 only, so weights are decoded by table
// look-up and activation formats arrive as the bf16 values of their quantised numbers, which is exact (at most 4
// significant bits).
#ifndef MXORT_KERNELS_HIP_MMA_GFX942_H_
#define MXORT_KERNELS_HIP_MMA_GFX942_H_

#include "kernels/hip/layout.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/mma_bf16.h"
#include "kernels/hip/prelude.h"
#include "mx_formats.h"

namespace mxort::hip {

// Two v_mfma_f32_16x16x16_bf16 a part: k 8j .. 8j + 3 and 8j + 4 .. 8j + 7 of every lane's block.
struct BFloat16Mma : BFloat16Activations {
  static constexpr WeightCode kWeight = WeightCode::kFp4;

  typedef short i16x4 __attribute__((ext_vector_type(4)));

  // The eight magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 times the scale as bf16: low bytes and high bytes, indexed by code.
  // The products are exact in bf16, subnormals included; a NaN scale makes all of them NaN.
  struct Table {
    u32 low[2], high[2];
  };
  MXORT_DEVICE Table MakeTable(u8 scale) {
    const float s = DecodeScale(scale);
    u32 pair[4];
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      pair[i.value] = UpperHalves(DecodeElement<E2M1>(2 * i.value) * s, DecodeElement<E2M1>(2 * i.value + 1) * s);
    });
    Table t;
    Unroll<0, 2>([&](auto i) __attribute__((always_inline)) {
      t.low[i.value] = __builtin_amdgcn_perm(pair[2 * i.value + 1], pair[2 * i.value], 0x06040200);
      t.high[i.value] = __builtin_amdgcn_perm(pair[2 * i.value + 1], pair[2 * i.value], 0x07050301);
    });
    return t;
  }
  // Four codes, one a byte, to four bf16.
  MXORT_DEVICE i32x2 Decode(const Table& t, u32 codes) {
    const u32 index = codes & 0x07070707u, sign = (codes & 0x08080808u) << 4;
    const u32 low = __builtin_amdgcn_perm(t.low[1], t.low[0], index);
    const u32 high = __builtin_amdgcn_perm(t.high[1], t.high[0], index) | sign;
    return i32x2{static_cast<i32>(__builtin_amdgcn_perm(high, low, 0x05010400)),
                 static_cast<i32>(__builtin_amdgcn_perm(high, low, 0x07030602))};
  }

  template <int kPart, int kIndex, int kWeightByte, int kActivationByte>
  MXORT_DEVICE f32x4 Multiply(i32x4 weight, i32 weight_scale, const Activation& a, i32, f32x4 sum) {
    const Table table = MakeTable(static_cast<u8>(static_cast<u32>(weight_scale) >> (8 * kWeightByte)));
    const u32 even = static_cast<u32>(weight[kPart]) & 0x0F0F0F0Fu,
              odd = static_cast<u32>(weight[kPart]) >> 4 & 0x0F0F0F0Fu;
    const i32x2 w0 = Decode(table, __builtin_amdgcn_perm(odd, even, 0x05010400));  // k 0 .. 3
    const i32x2 w1 = Decode(table, __builtin_amdgcn_perm(odd, even, 0x07030602));  // k 4 .. 7
    sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(i16x4, w0),
                                                    __builtin_bit_cast(i16x4, i32x2{a.v[0], a.v[1]}), sum, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(i16x4, w1),
                                                     __builtin_bit_cast(i16x4, i32x2{a.v[2], a.v[3]}), sum, 0, 0, 0);
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_MMA_GFX942_H_
