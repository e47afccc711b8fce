// A to records: widen, rotate, quantise (or split into bf16 terms), pack. One pass over A. The arithmetic is that of
// ep/kernels/activation.h and gives the same bits; layout.h says where they go.
//
// A wave makes a fragment of a record, and lane l has the 32 values of row l % 16, block l / 16. What is made of them
// is a Sink: a class with `static void Store(const Record&, float (&x)[kBlockSize])`, which may change x.
#ifndef MXORT_KERNELS_HIP_PREPARE_H_
#define MXORT_KERNELS_HIP_PREPARE_H_

#include "kernels/hip/args.h"
#include "kernels/hip/epilogue.h"
#include "kernels/hip/layout.h"
#include "kernels/hip/prelude.h"
#include "kernels/hip/wave.h"
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
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
    const float theirs = FromLane(x[i.value], lane ^ mask);
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

// Where a wave's fragment of a step goes: the first of `terms` records.
struct Record {
  u8* records;  // [panel of 64 rows][step][term]
  u32 panel, step, steps, terms, fragment;
  MXORT_METHOD u8* Of(u32 term, u32 bytes) const {
    return records + ((static_cast<u64>(panel) * steps + step) * terms + term) * bytes;
  }
};

template <Operand kOperand>
MXORT_DEVICE void StoreQuantized(u8* record, u32 fragment, const Block& block) {
  constexpr int kBits = LaneBytes(kOperand) / 4;
  const u32 lane = Lane();
  u8* codes = record + kScaleRecordBytes;
  u32 w[kBits];
  Pack<kBits>(block.code, w);
  record[lane * 4 + fragment] = block.scale;
  if constexpr (kOperand == Operand::kFp4) {
    *reinterpret_cast<u32x4*>(codes + fragment * kSlotBytes + lane * 16) = u32x4{w[0], w[1], w[2], w[3]};
  } else if constexpr (kOperand == Operand::kFp8E4M3) {
    // The instruction wants k 16g .. of the first 64 k in one half of lane group g, of the second 64 in the other.
    const u32 block_index = lane / 16, half = block_index / 2, group = block_index % 2 * 2;
    u8* at = codes + (fragment * 2 + half) * kSlotBytes + (group * 16 + lane % 16) * 16;
    *reinterpret_cast<u32x4*>(at) = u32x4{w[0], w[1], w[2], w[3]};
    *reinterpret_cast<u32x4*>(at + 256) = u32x4{w[4], w[5], w[6], w[7]};
  } else {
    u8* pair = codes + fragment / 2 * 3 * kSlotBytes + lane * 16;
    if (fragment % 2 == 0) {
      *reinterpret_cast<u32x4*>(pair) = u32x4{w[0], w[1], w[2], w[3]};
      *reinterpret_cast<u32x2*>(pair + kSlotBytes) = u32x2{w[4], w[5]};
    } else {
      *reinterpret_cast<u32x2*>(pair + kSlotBytes + 8) = u32x2{w[0], w[1]};
      *reinterpret_cast<u32x4*>(pair + 2 * kSlotBytes) = u32x4{w[2], w[3], w[4], w[5]};
    }
  }
}

MXORT_DEVICE void StoreBFloat16(u8* record, u32 fragment, const u32 (&v)[kBlockSize]) {
  u8* at = record + fragment * FragmentBytes(Operand::kBf16) + Lane() * 16;
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
MXORT_DEVICE void SplitBFloat16(u32 terms, float (&x)[kBlockSize], const Store& store) {
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
struct Quantized {
  MXORT_DEVICE void Store(const Record& to, float (&x)[kBlockSize]) {
    QuantizeTerms<F, kTerms>(kTerms, x, [&](u32 term, const Block& block) __attribute__((always_inline)) {
      StoreQuantized<kOperand>(to.Of(term, RecordBytes(kOperand)), to.fragment, block);
    });
  }
};

struct BFloat16Terms {
  MXORT_DEVICE void Store(const Record& to, float (&x)[kBlockSize]) {
    SplitBFloat16(to.terms, x, [&](u32 term, const u32(&v)[kBlockSize]) __attribute__((always_inline)) {
      StoreBFloat16(to.Of(term, RecordBytes(Operand::kBf16)), to.fragment, v);
    });
  }
};

template <class F>
struct Emulated {
  MXORT_DEVICE void Store(const Record& to, float (&x)[kBlockSize]) {
    u32 v[kBlockSize];
    QuantizedBFloat16<F>(x, v);
    StoreBFloat16(to.Of(0, RecordBytes(Operand::kBf16)), to.fragment, v);
  }
};

// The block of this lane in row `row` of A, where `there`, else zeros; rotated.
MXORT_DEVICE void LoadRotated(const PrepareArgs& args, u64 row, bool there, float (&x)[kBlockSize]) {
  const u32 k = GroupX() * kStepK + Lane() / 16 * kBlockSize;
  const i32 left = there ? static_cast<i32>(args.k) - static_cast<i32>(k) : 0;  // may be negative
  LoadBlock(args.type, args.a, left > 0 ? row * args.k + k : 0, left, args.k, x);
  Rotate<16>(args.rotation, x);
}

// A workgroup of 4 waves makes the records of a step and a panel.
template <class Sink>
MXORT_DEVICE void Prepare(const PrepareArgs& args) {
  float x[kBlockSize];
  const u32 row = GroupY() * kPanelRows + WaveIndex() * kFragmentRows + Lane() % 16;
  LoadRotated(args, row, row < args.m, x);
  Sink::Store({static_cast<u8*>(args.records), GroupY(), GroupX(), args.steps, args.terms, WaveIndex()}, x);
}

}  // namespace mxort::hip

// m(name, Sink) for each of an architecture: the names behind "prepare_" in select.cc.
#if defined(__gfx950__)
#define MXORT_NATIVE_SINKS(m)                                                                                     \
  m(fp4, Quantized<mxort::E2M1, Operand::kFp4, 1>) m(e2m3, Quantized<mxort::E2M3, Operand::kFp6E2M3, 1>)          \
      m(e3m2, Quantized<mxort::E3M2, Operand::kFp6E3M2, 1>) m(e4m3, Quantized<mxort::E4M3, Operand::kFp8E4M3, 1>) \
          m(e2m3x2, Quantized<mxort::E2M3, Operand::kFp6E2M3, 2>)
#else
#define MXORT_NATIVE_SINKS(m)
#endif
#define MXORT_SINKS(m)                                                                                       \
  MXORT_NATIVE_SINKS(m)                                                                                      \
  m(fp4_bf16, Emulated<mxort::E2M1>) m(e2m3_bf16, Emulated<mxort::E2M3>) m(e3m2_bf16, Emulated<mxort::E3M2>) \
      m(e4m3_bf16, Emulated<mxort::E4M3>) m(bf16, BFloat16Terms)

#endif  // MXORT_KERNELS_HIP_PREPARE_H_
