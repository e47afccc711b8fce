// The float kernel: Y = A . W^T with FMA-class arithmetic, written once over a 16-lane vector policy `S` and compiled
// for each instruction set. It serves every activation format (quantised activations are exact floats) and every level.
//
// S provides:  Vector (16 floats), Codes (16 lanes of 8 codes), Pairs (16 lanes of 2 bytes), kMaxRows (rows that fit
// its registers), Zero, Broadcast, Add, MultiplyAdd, LoadCodes, Decode (E2M1 values, or kScaleShare^-1 times them),
// DecodeByte (a byte's integer less kInt8Offset), LoadPairs, DecodePair (a byte's float16, layout.h), LoadScales (the
// scales times kScaleShare), Store.
#ifndef MXORT_KERNELS_FLOAT_KERNEL_H_
#define MXORT_KERNELS_FLOAT_KERNEL_H_

#include "kernels/activation.h"
#include "kernels/kernel.h"
#include "kernels/layout.h"

namespace mxort {

// A panel is [blocks][rows][32] floats.
MXORT_INLINE size_t FloatPanelBytes(const MatMulSpec& spec, int rows) {
  const int64_t blocks = (spec.K + kBlockSize - 1) / kBlockSize;
  return static_cast<size_t>(blocks * kBlockSize * rows) * sizeof(float);
}

MXORT_INLINE bool PrepareFloatRow(const MatMulSpec& spec, DataType type, const void* a, int row, int rows,
                                  float* scratch, uint8_t* panel, float factor = 1.0f) {
  const int64_t blocks = (spec.K + kBlockSize - 1) / kBlockSize;
  const bool plain = WidenAndRotate(spec, type, a, blocks, scratch);
  FakeQuantizeRow(spec.activation_format, scratch, blocks);
  float* out = reinterpret_cast<float*>(panel) + row * kBlockSize;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int i = 0; i < kBlockSize; ++i) out[b * rows * kBlockSize + i] = scratch[b * kBlockSize + i] * factor;
  }
  return plain;
}

// The same for weights in bytes: what the kernel's decoding and scales leave to be multiplied with is a power of two,
// exact in A, which is far from overflow (PlainActivation).
template <class S>
MXORT_INLINE bool PrepareByteRow(const MatMulSpec& spec, DataType type, const void* a, int row, int rows,
                                 float* scratch, uint8_t* panel) {
  const float unit = WithElement(spec.weight_format, [](auto element) { return ByteUnit<decltype(element)>(); });
  return PrepareFloatRow(spec, type, a, row, rows, scratch, panel, unit / S::kScaleShare);
}

// How the weights lie: vectors of kElements consecutive k of the strip's columns.
template <class S>
struct NibbleWeights {
  using Codes = typename S::Codes;
  static constexpr int kElements = kVectorElements, kBytes = kVectorBytes;
  MXORT_INLINE Codes Load(const uint8_t* p) { return S::LoadCodes(p); }
  MXORT_INLINE typename S::Vector Decode(const Codes& codes, int e) { return S::Decode(codes, NibbleShift(e)); }
};
template <class S>
struct ByteWeights {
  using Codes = typename S::Pairs;
  static constexpr int kElements = kByteVectorElements, kBytes = kByteVectorBytes;
  MXORT_INLINE Codes Load(const uint8_t* p) { return S::LoadPairs(p); }
  MXORT_INLINE typename S::Vector Decode(const Codes& codes, int e) { return S::DecodePair(codes, e); }
};

template <class S>
struct Int8Weights {
  struct Codes {
    typename S::Codes half[2];
  };
  static constexpr int kElements = kVectorElements, kBytes = 2 * kVectorBytes;
  MXORT_INLINE Codes Load(const uint8_t* p) { return {{S::LoadCodes(p), S::LoadCodes(p + kVectorBytes)}}; }
  MXORT_INLINE typename S::Vector Decode(const Codes& codes, int e) {
    return S::DecodeByte(codes.half[Int8Half(e)], Int8Shift(e));
  }
};

// y[column..] = total * column_scale + bias for `columns` columns from n on. Loops of a constant length become a few
// instructions, and a tile of few blocks takes no longer than its store would otherwise.
MXORT_INLINE void StoreColumns(const MatMulArgs& args, int64_t row, int64_t n, int64_t columns, const float* total) {
  float values[kStripColumns];
  const float *scale = args.column_scale + n, *bias = args.bias + n;
  for (int64_t i = 0; i < columns; ++i) values[i] = total[i] * scale[i] + bias[i];
  const int64_t index = (row - args.y_row) * args.y_stride + n - args.y_column;
  char* y = static_cast<char*>(args.y) + static_cast<size_t>(index) * DataTypeBytes(args.type);
  switch (args.type) {
    case DataType::kFloat:
      __builtin_memcpy(y, values, static_cast<size_t>(columns) * sizeof(float));
      break;
    case DataType::kFloat16:
      FloatsToFloat16(values, columns, reinterpret_cast<uint16_t*>(y));
      break;
    case DataType::kBFloat16:
      for (int64_t i = 0; i < columns; ++i) reinterpret_cast<uint16_t*>(y)[i] = FloatToBFloat16(values[i]);
      break;
  }
}
// The columns of a strip that exist.
MXORT_INLINE void StoreStrip(const MatMulArgs& args, int64_t row, int64_t strip, const float* total) {
  const int64_t n = strip * kStripColumns, left = args.spec->N - n;
  if (left >= kStripColumns) {
    StoreColumns(args, row, n, kStripColumns, total);
  } else {
    StoreColumns(args, row, n, left, total);
  }
}

// A panel of kRows rows by one strip. A block's dot product is summed first and scaled then: exact for every E8M0
// value, and a sum of short sums is more accurate than one long one. kParts independent sums hide the FMA's latency
// when kRows is small.
template <class S, class W, int kRows>
MXORT_INLINE void FloatTile(const MatMulArgs& args, int64_t panel, int64_t strip) {
  constexpr int kParts = kRows >= 4 ? 1 : kRows == 1 ? 4 : 2;
  constexpr int kVectors = kBlockSize / W::kElements, kCodeBytes = kVectors * W::kBytes;
  using Vector = typename S::Vector;
  const uint8_t* p = args.packed + strip * StripBytes(args.blocks, kCodeBytes + kStripColumns);
  const float* a = reinterpret_cast<const float*>(args.prepared + static_cast<size_t>(panel) * args.panel_stride);
  Vector total[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r] = S::Zero();
  for (int64_t group = 0; group < args.blocks; group += kGroupBlocks) {
    const int64_t group_blocks = args.blocks - group < kGroupBlocks ? args.blocks - group : kGroupBlocks;
    const uint8_t* scales = p + group_blocks * kCodeBytes;
    for (int64_t b = 0; b < group_blocks; ++b, p += kCodeBytes, scales += kStripColumns, a += kRows * kBlockSize) {
      Prefetch<kCodeBytes + kStripColumns>(p);
      Vector part[kRows][kParts];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) part[r][i] = S::Zero();
      }
      for (int i = 0; i < kVectors; ++i) {
        const typename W::Codes codes = W::Load(p + i * W::kBytes);
        const float* x0 = Opaque(a + i * W::kElements);
#pragma GCC unroll 8
        for (int e = 0; e < W::kElements; ++e) {
          const Vector weight = W::Decode(codes, e);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            const Vector x = S::Broadcast(x0 + r * kBlockSize + e);
            part[r][e % kParts] = S::MultiplyAdd(weight, x, part[r][e % kParts]);
          }
        }
      }
      const Vector scale = S::LoadScales(scales);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int i = 1; i < kParts; ++i) part[r][0] = S::Add(part[r][0], part[r][i]);
        total[r] = S::MultiplyAdd(part[r][0], scale, total[r]);
      }
    }
    p += group_blocks * kStripColumns;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    alignas(64) float out[kStripColumns];
    S::Store(out, total[r]);
    StoreStrip(args, panel * args.panel_rows + r, strip, out);
  }
}

template <class S, class W = NibbleWeights<S>>
struct FloatTiles {
  static constexpr int kMaxRows = S::kMaxRows;
  template <int kRows>
  static void Run(const MatMulArgs& args, int64_t panel, int64_t strip) {
    FloatTile<S, W, kRows>(args, panel, strip);
  }
};

// Tiles::Run<rows> for the panels and strips given. A panel, which is larger than a strip, is read once for all strips;
// those stay in the second-level cache.
template <class Tiles, int kRows = Tiles::kMaxRows>
MXORT_INLINE void RunTile(int rows, const MatMulArgs& args, int64_t panel, int64_t strip) {
  if (rows == kRows) return Tiles::template Run<kRows>(args, panel, strip);
  if constexpr (kRows > 1) RunTile<Tiles, kRows - 1>(rows, args, panel, strip);
}
template <class Tiles>
MXORT_INLINE void ComputeTiles(const MatMulArgs& args, Range panels, Range strips) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const int64_t left = args.M - panel * args.panel_rows;
    const int rows = left < args.panel_rows ? static_cast<int>(left) : args.panel_rows;
    for (int64_t strip = strips.begin; strip < strips.end; ++strip) RunTile<Tiles>(rows, args, panel, strip);
  }
}

}  // namespace mxort

#endif  // MXORT_KERNELS_FLOAT_KERNEL_H_
