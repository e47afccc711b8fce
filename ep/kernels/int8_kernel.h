// The integer kernel: block dot products as exact integers, written once over a policy `S` and compiled for each
// instruction set. No standard library here (mx_formats.h).
//
// Weights: 2 * E2M1 is an integer in [-12, 12]; + 12 makes it the unsigned operand of vpdpbusd and vpmaddubsw. Of
// MXINT8 that is 64 * INT8 + 128. Activations: int8, in one or two terms (kTerms). With q the activation integers,
// sum((2w + 12) q) - 12 sum(q) = 2 sum(w q); the second term is known before the product and is what the accumulator
// starts from.
//
//   activation_format  level  terms  a =                                        error of a
//   mxfp4              any    1      q * scale / 2,  q = 2 * element            none
//   mxfp6_e2m3         any    1      q * scale / 8,  q = 8 * element            none
//   none               4      1      q * absmax / 127                           5e-3 relative RMS
//   none               3      2      (256 q1 + q2) * absmax / (127 * 256)       2e-5 relative RMS
//
// S provides:  Absmax (bits of a block's largest magnitude), Fill, Load, Multiply, Subtract, Round (to nearest even),
// AtMost, StoreBytes (32 integers, -128 to 127, as int8 in the order of a packed vector's nibbles (layout.h); their
// sum), kLanes (output columns of a register: 16 or 8), Ints and Floats of that many lanes, kMaxRows (rows that
// fit its registers, by terms), Decode (8 codes of each column to 2 registers of 4 weights each), Accumulate (4 such
// registers times 16 int8, onto a sum), LoadBytes and AccumulateBytes (the same of whole bytes), Broadcast, Combine
// (256 x + y), ToFloat, LoadExponents (scales as integers at the place of a float's exponent), Scales (those plus an
// integer, as floats), MultiplyAdd, Store.
#ifndef MXORT_KERNELS_INT8_KERNEL_H_
#define MXORT_KERNELS_INT8_KERNEL_H_

#include "kernels/activation.h"
#include "kernels/float_kernel.h"
#include "kernels/kernel.h"
#include "kernels/layout.h"

namespace mxort {

// 2 * E2M1 + 12 by code.
#define MXORT_INT8_WEIGHTS 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0

// How weights lie and what their integers mean: weight = (integer - kOffset) * kUnit. Multiply adds to kSums sums the
// products of 16 k of a strip's columns, at `codes`, with 16 int8 at a.
template <class S>
struct IntegerNibbles {
  static constexpr const WeightLayout& kLayout = kStrip16;
  static constexpr int kOffset = 12, kCodeBytes = kBlockCodeBytes;
  static constexpr float kUnit = 0.5f;
  template <int kSums>
  MXORT_INLINE void Multiply(const uint8_t* codes, const uint8_t* a, typename S::Ints* sums) {
    typename S::Ints weights[4];
    S::Decode(codes, weights);
    S::Decode(codes + kVectorBytes, weights + 2);
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) S::Accumulate(sums[i], weights, a + i * kBlockSize);
  }
};
template <class S>
struct IntegerBytes {
  static constexpr const WeightLayout& kLayout = kStrip16Int8;
  static constexpr int kOffset = kInt8Offset, kCodeBytes = kInt8BlockCodeBytes;
  static constexpr float kUnit = ByteUnit<INT8>();
  template <int kSums>
  MXORT_INLINE void Multiply(const uint8_t* codes, const uint8_t* a, typename S::Ints* sums) {
    typename S::Ints weights[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) weights[i] = S::LoadBytes(codes + i * kVectorBytes);
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) S::AccumulateBytes(sums[i], weights, a + i * kBlockSize);
  }
};

inline constexpr int kInt8Max = 127;
// The second term is in units of 1/256 of the first, a shift. Its largest value, 128, saturates to 127.
inline constexpr int kTermRatioBits = 8, kTermRatio = 1 << kTermRatioBits;

MXORT_INLINE bool Int8Supports(const MatMulSpec& spec) {
  return spec.activation_format == ActivationFormat::kMxfp4 || spec.activation_format == ActivationFormat::kMxfp6E2M3 ||
         (spec.activation_format == ActivationFormat::kNone && spec.accuracy_level != AccuracyLevel::kFp32);
}

MXORT_INLINE int Int8Terms(const MatMulSpec& spec) {
  return spec.activation_format == ActivationFormat::kNone && spec.accuracy_level == AccuracyLevel::kBf16 ? 2 : 1;
}

// What a panel holds of one block of its kRows rows: [rows][terms][32] integers in the order of the packed weights,
// then [rows] scales (their bits less those of 1.0) and [rows][terms] starts of the accumulators, -kOffset * sum(q)
// (int32).
MXORT_INLINE constexpr int PanelBlockBytes(int rows, int terms) { return rows * (terms * kBlockSize + 4 + terms * 4); }
MXORT_INLINE constexpr int ScaleOffset(int rows, int terms) { return rows * terms * kBlockSize; }
MXORT_INLINE constexpr int StartOffset(int rows, int terms) { return ScaleOffset(rows, terms) + rows * 4; }

MXORT_INLINE size_t Int8PanelBytes(const MatMulSpec& spec, int rows) {
  return static_cast<size_t>((spec.K + kBlockSize - 1) / kBlockSize * PanelBlockBytes(rows, Int8Terms(spec)));
}

// A weight's scale is a power of two, so that an addition to the exponent multiplies the activation's scale with it: of
// the units that multiply, 9 operations a row and block instead of 10. Both keep to ranges whose sum is a normal float:
//   weight 2^-64 .. 2^16,  activation 2^-62 .. 2^100 (PlainActivation), or of a block of zeros 1
inline constexpr ScaleRange kAddedScales = {kScaleBias - 64, kScaleBias + 16};
inline constexpr float kSmallestScale = 0x1p-62f;
inline constexpr int32_t kOneBits = kScaleBias << kFloatMantissaBits;

// False: the scale is too small.
MXORT_INLINE bool StoreScale(float scale, bool zero, int32_t* bits) {
  *bits = zero ? 0 : static_cast<int32_t>(FloatBits(scale)) - kOneBits;
  return zero || scale >= kSmallestScale;
}

// The integers of one term and the start that goes with them.
template <class S, class W>
MXORT_INLINE void StoreTerm(const typename S::Ints* integers, int8_t* q, int32_t* start) {
  *start = -W::kOffset * S::StoreBytes(integers, q);
}

// Format `none`: one or two int8 terms of the block's own range.
template <class S, class W, int kTerms>
MXORT_INLINE bool PrepareInt8Block(const float* block, float absmax, int8_t* q, int32_t* start, int32_t* scale) {
  constexpr int kVectors = kBlockSize / S::kLanes;
  const typename S::Floats inverse = S::Fill(absmax > 0 ? static_cast<float>(kInt8Max) / absmax : 0.0f);
  typename S::Ints first[kVectors], second[kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    const typename S::Floats units = S::Multiply(S::Load(block + i * S::kLanes), inverse);
    first[i] = S::Round(units);
    if constexpr (kTerms == 2) {
      const typename S::Floats rest = S::Multiply(S::Subtract(units, S::ToFloat(first[i])), S::Fill(kTermRatio));
      second[i] = S::AtMost(S::Round(rest), kInt8Max);
    }
  }
  StoreTerm<S, W>(first, q, start);
  if constexpr (kTerms == 2) StoreTerm<S, W>(second, q + kBlockSize, start + 1);
  return StoreScale(absmax * (W::kUnit / kInt8Max / (kTerms == 2 ? kTermRatio : 1)), absmax == 0, scale);
}

// An MX format whose elements are integers in units of 1/kUnits.
template <class S, class W, class F, int kUnits>
MXORT_INLINE bool PrepareMxBlock(const float* block, float absmax, int8_t* q, int32_t* start, int32_t* scale) {
  alignas(64) float elements[kBlockSize];
  alignas(64) int integers[kBlockSize];
  const uint8_t byte = QuantizeBlock<F>(block, elements);
  for (int i = 0; i < kBlockSize; ++i) integers[i] = static_cast<int>(elements[i] * kUnits);
  StoreTerm<S, W>(reinterpret_cast<const typename S::Ints*>(integers), q, start);
  return StoreScale(DecodeScale(byte) * (W::kUnit / kUnits), absmax == 0, scale);
}

template <class S, class W>
MXORT_INLINE bool PrepareInt8Row(const MatMulSpec& spec, DataType type, const void* a, int row, int rows,
                                 float* scratch, uint8_t* panel) {
  const int64_t blocks = (spec.K + kBlockSize - 1) / kBlockSize;
  const int terms = Int8Terms(spec);
  const int64_t padded = blocks * kBlockSize;
  const float* values = scratch;
  if (type == DataType::kFloat && spec.rotation == 1 && spec.K == padded) {
    values = static_cast<const float*>(a);
  } else {
    WidenRow(type, a, spec.K, padded, scratch);
    RotateRow(spec.rotation, scratch, padded);
  }
  bool plain = true;
  for (int64_t b = 0; b < blocks; ++b, panel += PanelBlockBytes(rows, terms), values += kBlockSize) {
    constexpr int kAhead = 256;  // 1 KB: more than a block's work hides what comes from the last-level cache
    __builtin_prefetch(values + kAhead);
    __builtin_prefetch(values + kAhead + kBlockSize / 2);
    const unsigned bits = S::Absmax(values);
    if (!PlainActivation(bits)) return false;  // whatever the panel holds, nobody reads the row's sums
    const float absmax = BitsFloat(bits);
    int8_t* q = reinterpret_cast<int8_t*>(panel) + row * terms * kBlockSize;
    int32_t* scale = reinterpret_cast<int32_t*>(panel + ScaleOffset(rows, terms)) + row;
    int32_t* start = reinterpret_cast<int32_t*>(panel + StartOffset(rows, terms)) + row * terms;
    if (spec.activation_format == ActivationFormat::kMxfp4) {
      plain &= PrepareMxBlock<S, W, E2M1, 2>(values, absmax, q, start, scale);
    } else if (spec.activation_format == ActivationFormat::kMxfp6E2M3) {
      plain &= PrepareMxBlock<S, W, E2M3, 8>(values, absmax, q, start, scale);
    } else if (terms == 2) {
      plain &= PrepareInt8Block<S, W, 2>(values, absmax, q, start, scale);
    } else {
      plain &= PrepareInt8Block<S, W, 1>(values, absmax, q, start, scale);
    }
  }
  return plain;
}

// One block of a strip's columns [part * kLanes, (part + 1) * kLanes) times the panel's rows, onto `total`.
template <class S, class W, int kRows, int kTerms>
MXORT_INLINE void Int8Block(const uint8_t* codes, const uint8_t* weight_scales, const uint8_t* a,
                            typename S::Floats* total) {
  a = Opaque(a);
  typename S::Ints dot[kRows * kTerms];
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kTerms; ++i) dot[i] = S::Broadcast(a + StartOffset(kRows, kTerms) + 4 * i);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    W::template Multiply<kRows * kTerms>(codes + half * W::kCodeBytes / 2, a + half * kBlockSize / 2, dot);
  }
  const typename S::Ints exponents = S::LoadExponents(weight_scales);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    typename S::Ints exact = dot[r * kTerms];
    // 256 * 32 * 12 * 127 + 32 * 12 * 127 < 2^24, so the sum of nibbles is exact as float too. That of bytes is below
    // 256 * 32 * 128 * 128 = 2^27 and rounded to float, far below what the second term leaves of A.
    if constexpr (kTerms == 2) exact = S::Combine(exact, dot[r * kTerms + 1]);
    const typename S::Floats scale = S::Scales(exponents, a + ScaleOffset(kRows, kTerms) + 4 * r);
    total[r] = S::MultiplyAdd(S::ToFloat(exact), scale, total[r]);
  }
}

// A panel of kRows rows by one strip.
template <class S, class W, int kRows, int kTerms>
MXORT_INLINE void Int8Tile(const MatMulArgs& args, int64_t panel, int64_t strip) {
  constexpr int kParts = kStripColumns / S::kLanes;
  const uint8_t* p = args.packed + strip * StripBytes(args.blocks, W::kCodeBytes + kStripColumns);
  const uint8_t* a = args.prepared + static_cast<size_t>(panel) * args.panel_stride;
  typename S::Floats total[kParts][kRows];
#pragma GCC unroll 2
  for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) total[part][r] = typename S::Floats{};
  }
  for (int64_t group = 0; group < args.blocks; group += kGroupBlocks) {
    const int64_t group_blocks = args.blocks - group < kGroupBlocks ? args.blocks - group : kGroupBlocks;
    const uint8_t* scales = p + group_blocks * W::kCodeBytes;
    for (int64_t b = 0; b < group_blocks; ++b) {
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        Int8Block<S, W, kRows, kTerms>(p + part * 4 * S::kLanes, scales + part * S::kLanes, a, total[part]);
      }
      Prefetch<W::kCodeBytes + kStripColumns>(p);
      p += W::kCodeBytes;
      scales += kStripColumns;
      a += PanelBlockBytes(kRows, kTerms);
    }
    p += group_blocks * kStripColumns;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    alignas(64) float out[kStripColumns];
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) S::Store(out + part * S::kLanes, total[part][r]);
    StoreStrip(args, panel * args.panel_rows + r, strip, out);
  }
}

template <class S, class W, int kTerms>
struct Int8Tiles {
  static constexpr int kMaxRows = S::kMaxRows[kTerms - 1];
  template <int kRows>
  static void Run(const MatMulArgs& args, int64_t panel, int64_t strip) {
    Int8Tile<S, W, kRows, kTerms>(args, panel, strip);
  }
};

// The row of the kernel table for policy S and weights W. Internal linkage, as everything here.
template <class S, class W>
struct Int8Kernel {
  static int MaxPanelRows(const MatMulSpec& spec) { return S::kMaxRows[Int8Terms(spec) - 1]; }
  static bool Supports(const MatMulSpec& spec) { return Int8Supports(spec); }
  static size_t PanelBytes(const MatMulSpec& spec, int rows) { return Int8PanelBytes(spec, rows); }
  static bool Prepare(const MatMulSpec& spec, DataType type, const void* a, int row, int rows, float* scratch,
                      uint8_t* panel) {
    return PrepareInt8Row<S, W>(spec, type, a, row, rows, scratch, panel);
  }
  static void Compute(const MatMulArgs& args, Range panels, Range strips) {
    if (Int8Terms(*args.spec) == 2) {
      ComputeTiles<Int8Tiles<S, W, 2>>(args, panels, strips);
    } else {
      ComputeTiles<Int8Tiles<S, W, 1>>(args, panels, strips);
    }
  }
  static constexpr Kernel Row(const char* name, bool (*cpu_has)(const CpuFeatures&)) {
    return {name, &W::kLayout, cpu_has, Supports, MaxPanelRows, PanelBytes, Prepare, Compute, 1, kAddedScales};
  }
};

}  // namespace mxort

#endif  // MXORT_KERNELS_INT8_KERNEL_H_
