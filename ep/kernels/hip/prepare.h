// A to records: widen, rotate, quantise (or split into bf16 terms), pack. One pass over A. The arithmetic is that of
// ep/kernels/activation.h and gives the same bits; layout.h says where they go.
//
// A workgroup makes one record: 4 waves, a fragment each; lane l has the 32 values of row l % 16, block l / 16.
#ifndef MXORT_KERNELS_HIP_PREPARE_H_
#define MXORT_KERNELS_HIP_PREPARE_H_

#include "kernels/hip/args.h"
#include "kernels/hip/epilogue.h"
#include "kernels/hip/layout.h"
#include "kernels/hip/prelude.h"
#include "mx_formats.h"

namespace mxort::hip {

typedef u16 u16x8 __attribute__((ext_vector_type(8)));

MXORT_DEVICE float FromHalf(Type type, u16 x) {
  return type == Type::kFloat16 ? static_cast<float>(__builtin_bit_cast(_Float16, x)) : BitsFloat(u32{x} << 16);
}

// `left` values of a row from `a` on, widened; zeros behind them. `wide`: a row is a multiple of 16 bytes.
template <Type kType>
MXORT_DEVICE void LoadBlock(const void* a, i32 left, bool wide, float (&x)[kBlockSize]) {
  constexpr int kVector = kType == Type::kFloat ? 4 : 8;
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) { x[i.value] = 0.0f; });
  if (wide) {
    Unroll<0, kBlockSize / kVector>([&](auto i) __attribute__((always_inline)) {
      constexpr int k = i.value * kVector;
      if (k < left) {
        if constexpr (kType == Type::kFloat) {
          const f32x4 v = *reinterpret_cast<const f32x4*>(static_cast<const float*>(a) + k);
          Unroll<0, 4>([&](auto j) __attribute__((always_inline)) { x[k + j.value] = v[j.value]; });
        } else {
          const u16x8 v = *reinterpret_cast<const u16x8*>(static_cast<const u16*>(a) + k);
          Unroll<0, 8>([&](auto j) __attribute__((always_inline)) { x[k + j.value] = FromHalf(kType, v[j.value]); });
        }
      }
    });
  } else {
    Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
      if (i.value < left) {
        if constexpr (kType == Type::kFloat) {
          x[i.value] = static_cast<const float*>(a)[i.value];
        } else {
          x[i.value] = FromHalf(kType, static_cast<const u16*>(a)[i.value]);
        }
      }
    });
  }
}

// The butterfly between this lane's values and those of the lane whose number differs in `mask`.
MXORT_DEVICE void ExchangeButterfly(u32 mask, float (&x)[kBlockSize]) {
  const u32 lane = Lane();
  const i32 other = static_cast<i32>((lane ^ mask) * 4);
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
    const float theirs =
        BitsFloat(static_cast<u32>(__builtin_amdgcn_ds_bpermute(other, static_cast<i32>(FloatBits(x[i.value])))));
    x[i.value] = lane & mask ? theirs - x[i.value] : x[i.value] + theirs;
  });
}

// Blocks of 64 and 128 are several lanes' blocks: lanes l and l ^ kNeighbour, then l ^ 2 kNeighbour.
template <u32 kNeighbour>
MXORT_DEVICE void Rotate(i32 rotation, float (&x)[kBlockSize]) {
  if (rotation == 1) return;
  Unroll<0, 5>([&](auto s) __attribute__((always_inline)) {
    constexpr int kStride = 1 << s.value;
    Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
      if constexpr ((i.value & kStride) == 0) {
        const float low = x[i.value], high = x[i.value + kStride];
        x[i.value] = low + high;
        x[i.value + kStride] = low - high;
      }
    });
  });
  if (rotation >= 64) ExchangeButterfly(kNeighbour, x);
  if (rotation >= 128) ExchangeButterfly(2 * kNeighbour, x);
  // float(1 / sqrt(rotation)), as in activation.h.
  const float normalizer = rotation == 32 ? 0.17677669529663687f : rotation == 64 ? 0.125f : 0.08838834764831845f;
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) { x[i.value] *= normalizer; });
}

struct Block {
  u32 code[kBlockSize];
  float value[kBlockSize];  // of the code, before the scale
  u8 scale;
};
// Rule "even"; a block with a NaN or an infinity becomes zeros with the NaN scale.
template <class F>
MXORT_DEVICE Block Quantize(const float (&x)[kBlockSize]) {
  u32 absmax = 0;
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
    const u32 magnitude = FloatBits(x[i.value]) & kFloatMagnitude;
    absmax = magnitude > absmax ? magnitude : absmax;
  });
  const bool finite = absmax < kFloatExponent;
  Block block;
  block.scale = finite ? ScaleEven<F>(absmax) : kScaleNaN;
  const float inverse = InverseScale(finite ? block.scale : static_cast<u8>(kScaleBias));
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
    const Element e = RoundToElement<F>(finite ? x[i.value] * inverse : 0.0f);
    block.code[i.value] = e.code;
    block.value[i.value] = e.value;
  });
  return block;
}

// Codes packed LSB first into 32-bit words.
template <int kBits>
MXORT_DEVICE void Pack(const u32 (&code)[kBlockSize], u32 (&word)[kBits]) {
  Unroll<0, kBits>([&](auto w) __attribute__((always_inline)) { word[w.value] = 0; });
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
    constexpr int kBit = i.value * kBits, kWord = kBit / 32, kShift = kBit % 32;
    word[kWord] |= code[i.value] << kShift;
    if constexpr (kShift + kBits > 32) word[kWord + 1] |= code[i.value] >> (32 - kShift);
  });
}

template <Operand kOperand>
MXORT_DEVICE void StoreQuantized(u8* record, const Block& block) {
  constexpr int kBits = LaneBytes(kOperand) / 4;
  const u32 wave = WaveIndex(), lane = Lane();
  u8* codes = record + kScaleRecordBytes;
  u32 w[kBits];
  Pack<kBits>(block.code, w);
  record[lane * 4 + wave] = block.scale;
  if constexpr (kOperand == Operand::kFp4) {
    *reinterpret_cast<u32x4*>(codes + wave * kSlotBytes + lane * 16) = u32x4{w[0], w[1], w[2], w[3]};
  } else if constexpr (kOperand == Operand::kFp8E4M3) {
    // The instruction wants k 16g .. of the first 64 k in one half of lane group g, of the second 64 in the other.
    const u32 block_index = lane / 16, half = block_index / 2, group = block_index % 2 * 2;
    u8* at = codes + (wave * 2 + half) * kSlotBytes + (group * 16 + lane % 16) * 16;
    *reinterpret_cast<u32x4*>(at) = u32x4{w[0], w[1], w[2], w[3]};
    *reinterpret_cast<u32x4*>(at + 256) = u32x4{w[4], w[5], w[6], w[7]};
  } else {
    u8* pair = codes + wave / 2 * 3 * kSlotBytes + lane * 16;
    if (wave % 2 == 0) {
      *reinterpret_cast<u32x4*>(pair) = u32x4{w[0], w[1], w[2], w[3]};
      *reinterpret_cast<u32x2*>(pair + kSlotBytes) = u32x2{w[4], w[5]};
    } else {
      *reinterpret_cast<u32x2*>(pair + kSlotBytes + 8) = u32x2{w[0], w[1]};
      *reinterpret_cast<u32x4*>(pair + 2 * kSlotBytes) = u32x4{w[2], w[3], w[4], w[5]};
    }
  }
}

MXORT_DEVICE void StoreBFloat16(u8* record, const u32 (&v)[kBlockSize]) {
  u8* at = record + WaveIndex() * FragmentBytes(Operand::kBf16) + Lane() * 16;
  Unroll<0, 4>([&](auto j) __attribute__((always_inline)) {
    u32x4 w;
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      constexpr int e = 8 * j.value + 2 * i.value;
      w[i.value] = v[e] | (v[e + 1] << 16);
    });
    *reinterpret_cast<u32x4*>(at + j.value * kSlotBytes) = w;
  });
}

// The block of A that begins at element `index`, of which `left` elements lie inside the row; of `k` elements.
MXORT_DEVICE void LoadBlock(int type, const void* a, u64 index, i32 left, u32 k, float (&x)[kBlockSize]) {
  const bool is_float = type == static_cast<int>(Type::kFloat);
  const bool wide = k % (is_float ? 4 : 8) == 0;
  if (is_float) {
    LoadBlock<Type::kFloat>(static_cast<const float*>(a) + index, left, wide, x);
  } else if (type == static_cast<int>(Type::kFloat16)) {
    LoadBlock<Type::kFloat16>(static_cast<const u16*>(a) + index, left, wide, x);
  } else {
    LoadBlock<Type::kBFloat16>(static_cast<const u16*>(a) + index, left, wide, x);
  }
}

// The rows of A that this lane prepares, rotated.
MXORT_DEVICE void LoadRotated(const PrepareArgs& args, float (&x)[kBlockSize]) {
  const u32 lane = Lane(), row = GroupY() * kPanelRows + WaveIndex() * kFragmentRows + lane % 16;
  const u32 k = GroupX() * kStepK + lane / 16 * kBlockSize;
  const i32 left = row < args.m ? static_cast<i32>(args.k) - static_cast<i32>(k) : 0;  // may be negative
  LoadBlock(args.type, args.a, left > 0 ? static_cast<u64>(row) * args.k + k : 0, left, args.k, x);
  Rotate<16>(args.rotation, x);
}

MXORT_DEVICE u8* RecordOf(const PrepareArgs& args, u32 term, u32 bytes) {
  const u64 index = (static_cast<u64>(GroupY()) * args.steps + GroupX()) * args.terms + term;
  return static_cast<u8*>(args.records) + index * bytes;
}

// kTerms = 2: the second term quantises what the first left, x - value * scale, which float represents exactly.
template <class F, int kTerms, class Store>
MXORT_DEVICE void QuantizeTerms(u32 terms, float (&x)[kBlockSize], const Store& store) {
  Unroll<0, kTerms>([&](auto term) __attribute__((always_inline)) {
    if (term.value < static_cast<i32>(terms)) {
      const Block block = Quantize<F>(x);
      store(term.value, block);
      if constexpr (term.value + 1 < kTerms) {
        const float scale = DecodeScale(block.scale);
        Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
          x[i.value] = block.scale == kScaleNaN ? 0.0f : x[i.value] - block.value[i.value] * scale;
        });
      }
    }
  });
}

// x as a sum of bf16: all terms but the last cut off the low bits, so that three terms hold every float exactly (8 bits
// each) and none overflows; the last rounds. A value that is not finite is its own first term.
template <class Store>
MXORT_DEVICE void BFloat16Terms(u32 terms, float (&x)[kBlockSize], const Store& store) {
#pragma clang loop unroll(disable)
  for (u32 term = 0; term < terms; ++term) {
    u32 v[kBlockSize];
    Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
      const u32 bits = FloatBits(x[i.value]);
      const bool nan = (bits & kFloatMagnitude) > kFloatExponent, finite = (bits & kFloatMagnitude) < kFloatExponent;
      const u32 cut = nan ? kFloatNaN >> 16 : bits >> 16;
      v[i.value] = term + 1 == terms && finite ? ToBFloat16(x[i.value]) : cut;
      x[i.value] = finite ? x[i.value] - BitsFloat(cut << 16) : 0.0f;
    });
    store(term, v);
  }
}

// Quantised values as bf16, exact: at most 4 significant bits.
template <class F>
MXORT_DEVICE void QuantizedBFloat16(const float (&x)[kBlockSize], u32 (&v)[kBlockSize]) {
  const Block block = Quantize<F>(x);
  const float scale = DecodeScale(block.scale);
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
    v[i.value] = block.scale == kScaleNaN ? kFloatNaN >> 16 : FloatBits(block.value[i.value] * scale) >> 16;
  });
}

template <class F, Operand kOperand, int kTerms>
MXORT_DEVICE void PrepareQuantized(const PrepareArgs& args) {
  float x[kBlockSize];
  LoadRotated(args, x);
  QuantizeTerms<F, kTerms>(kTerms, x, [&](u32 term, const Block& block) __attribute__((always_inline)) {
    StoreQuantized<kOperand>(RecordOf(args, term, RecordBytes(kOperand)), block);
  });
}

MXORT_DEVICE void PrepareBFloat16(const PrepareArgs& args) {
  float x[kBlockSize];
  LoadRotated(args, x);
  BFloat16Terms(args.terms, x, [&](u32 term, const u32(&v)[kBlockSize]) __attribute__((always_inline)) {
    StoreBFloat16(RecordOf(args, term, RecordBytes(Operand::kBf16)), v);
  });
}

template <class F>
MXORT_DEVICE void PrepareEmulated(const PrepareArgs& args) {
  float x[kBlockSize];
  LoadRotated(args, x);
  u32 v[kBlockSize];
  QuantizedBFloat16<F>(x, v);
  StoreBFloat16(RecordOf(args, 0, RecordBytes(Operand::kBf16)), v);
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_PREPARE_H_
