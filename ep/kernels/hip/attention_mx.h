// Caches in MXFP8 (E4M3) and MXFP4: a position's row is the codes of its blocks of 32, then their scales
// (docs/format.md). Numbers are decoded to bf16, which holds them exactly, and meet float operands as the sum of three
// bf16, which holds those exactly.
#ifndef MXORT_KERNELS_HIP_ATTENTION_MX_H_
#define MXORT_KERNELS_HIP_ATTENTION_MX_H_

#include "kernels/hip/attention_cache.h"
#include "mx_formats.h"

namespace mxort::hip {

struct TermsMma {
  static constexpr Type kType = Type::kFloat;
  static constexpr int kTerms = 3;
  using Left = i32x4;
  struct Right {
    i32x4 term[kTerms];
  };
  // Each term but the last cuts off the low bits of what is left.
  MXORT_DEVICE Right MakeRight(f32x8 x) {
    Right right;
    Unroll<0, kTerms>([&](auto t) __attribute__((always_inline)) {
      Unroll<0, kPerLane / 2>([&](auto i) __attribute__((always_inline)) {
        const u32 low = FloatBits(x[2 * i.value]), high = FloatBits(x[2 * i.value + 1]);
        right.term[t.value][i.value] = static_cast<i32>(__builtin_amdgcn_perm(high, low, 0x07060302));
        x[2 * i.value] -= BitsFloat(low & 0xFFFF0000u);
        x[2 * i.value + 1] -= BitsFloat(high & 0xFFFF0000u);
      });
    });
    return right;
  }
  // The smallest first.
  MXORT_DEVICE f32x4 Multiply(const Left& left, const Right& right, f32x4 sum) {
    Unroll<0, kTerms>([&](auto t) __attribute__((always_inline)) {
      sum = ElementMma<Type::kBFloat16>::Multiply(left, right.term[kTerms - 1 - t.value], sum);
    });
    return sum;
  }
};

// The value of the code in the lowest bits, subnormal ones included: its bits are those of a float whose exponent is
// off by the difference of the biases. Codes that are no numbers are never in a cache.
template <class F>
MXORT_DEVICE float DecodeCode(u32 code) {
  constexpr u32 kUnit = static_cast<u32>(2 * kScaleBias - F::kBias) << kFloatMantissaBits;
  const u32 magnitude = (code & (SignBit<F>() - 1)) << (kFloatMantissaBits - F::kMantissaBits);
  const u32 sign = (code & SignBit<F>()) << (32 - CodeBits<F>());
  return BitsFloat(FloatBits(BitsFloat(magnitude) * BitsFloat(kUnit)) | sign);
}

// Codes that follow each other in kWords words, to pairs of bf16.
template <class F, int kWords, int kPairs>
MXORT_DEVICE Words<kPairs> DecodeCodes(const Words<kWords>& codes, u32 scale) {
  constexpr int kBits = CodeBits<F>();
  Words<kPairs> to;
  Unroll<0, kPairs>([&](auto i) __attribute__((always_inline)) {
    constexpr int kBit = 2 * i.value * kBits, kWord = kBit / 32, kShift = kBit % 32;
    const u32 word = codes.w[kWord];
#if defined(__gfx950__)
    const float factor = BitsFloat(scale << kFloatMantissaBits);  // the instruction takes the exponent's bits
    u32 pair;
    if constexpr (kBits == 8) {
      pair = __builtin_bit_cast(u32, __builtin_amdgcn_cvt_scalef32_pk_bf16_fp8(word, factor, kShift == 16));
    } else {
      pair = __builtin_bit_cast(u32, __builtin_amdgcn_cvt_scalef32_pk_bf16_fp4(word, factor, kShift / 8));
    }
    to.w[i.value] = scale == kScaleNaN ? 0x7FC07FC0 : pair;
#else
    const float factor = DecodeScale(static_cast<u8>(scale));
    const u32 even = FloatBits(DecodeCode<F>(word >> kShift) * factor);
    const u32 odd = FloatBits(DecodeCode<F>(word >> (kShift + kBits)) * factor);
    to.w[i.value] = __builtin_amdgcn_perm(odd, even, 0x07060302);
#endif
  });
  return to;
}

// Heads of up to kSize numbers of F, a multiple of 32 of them.
template <class F, int kSize>
struct MxHead {
  using Mma = TermsMma;
  static constexpr int kHeadSize = kSize;
  static constexpr int kSteps = kSize / 32;  // a block of each key
  static constexpr int kSlice = kSize / 16;
  static constexpr int kBytes = 1;  // strides are in bytes
  static constexpr int kBits = CodeBits<F>();
  static constexpr int kKeyWords = kPerLane * kBits / 32, kSliceBytes = kSlice * kBits / 8;
  static constexpr int kSliceWords = (kSliceBytes + 3) / 4;
  static_assert(kBlockSize % kSlice == 0, "a slice has one scale");
  struct KeyPart {
    Words<kKeyWords> codes;
    u32 scale;
  };
  struct ValueSlice {
    Words<kSliceWords> codes;
    u32 scale;
  };
  using Decoded = Words<kSlice / 2>;

  MXORT_DEVICE u32 Bytes(long long bytes) { return static_cast<u32>(bytes); }
  MXORT_DEVICE u32 CodeBytes(u32 size) { return size * kBits / 8; }
  MXORT_DEVICE u32 RowBytes(u32 size) { return CodeBytes(size) + size / kBlockSize; }
  MXORT_DEVICE u32 Byte(const Rows& rows, u32 offset) {
    return static_cast<u8>(__builtin_amdgcn_raw_buffer_load_b8(rows.buffer, static_cast<i32>(offset), 0, 0));
  }

  template <int kStep>
  MXORT_DEVICE KeyPart LoadKey(const Rows& rows, u32 row, u32 size) {
    const bool exists = 32 * kStep < size;
    const u32 codes = row + CodeBytes(32 * kStep + Lane() / 16 * kPerLane);
    return {rows.Load<kKeyWords>(exists ? codes : kNowhere),
            Byte(rows, exists ? row + CodeBytes(size) + kStep : kNowhere)};
  }
  MXORT_DEVICE Mma::Left Key(const KeyPart& part) {
    return __builtin_bit_cast(Mma::Left, DecodeCodes<F, kKeyWords, kPerLane / 2>(part.codes, part.scale));
  }

  MXORT_DEVICE ValueSlice LoadValue(const Rows& rows, u32 row, u32 size) {
    const u32 column = Lane() % 16 * kSlice;
    ValueSlice slice;
    if constexpr (kSliceBytes == 2) {
      const i32 at = static_cast<i32>(row + CodeBytes(column));
      slice.codes.w[0] = static_cast<u16>(__builtin_amdgcn_raw_buffer_load_b16(rows.buffer, at, 0, 0));
    } else {
      slice.codes = rows.Load<kSliceWords>(row + CodeBytes(column));
    }
    slice.scale = Byte(rows, row + CodeBytes(size) + column / kBlockSize);
    return slice;
  }
  MXORT_DEVICE Decoded Decode(const ValueSlice& slice) {
    return DecodeCodes<F, kSliceWords, kSlice / 2>(slice.codes, slice.scale);
  }
  template <int kTile>
  MXORT_DEVICE Mma::Left Value(const Decoded (&slice)[kPerLane]) {
    return ColumnOf<kTile>(slice);
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_MX_H_
