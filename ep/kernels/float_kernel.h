// The float kernel: Y = A . W^T with FMA-class arithmetic, written once over a 16-lane vector policy `S` and compiled
// for each instruction set. It serves every activation format (quantised activations are exact floats) and every level.
//
// S provides:  Vector (16 floats), Codes (16 lanes of 8 codes), kMaxRows (rows that fit its registers), Zero,
// Broadcast, Add, MultiplyAdd, LoadCodes, Decode (E2M1 values, or twice them), LoadScales (the scales, or half of
// them), Store.
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
                                  float* scratch, uint8_t* panel) {
  const int64_t blocks = (spec.K + kBlockSize - 1) / kBlockSize;
  const bool plain = WidenAndRotate(spec, type, a, blocks, scratch);
  FakeQuantizeRow(spec.activation_format, scratch, blocks);
  float* out = reinterpret_cast<float*>(panel) + row * kBlockSize;
  for (int64_t b = 0; b < blocks; ++b) {
    __builtin_memcpy(out + b * rows * kBlockSize, scratch + b * kBlockSize, kBlockSize * sizeof(float));
  }
  return plain;
}

// y[column..] = total * column_scale + bias for `columns` columns from n on. Loops of a constant length become a few
// instructions, and a tile of few blocks takes no longer than its store would otherwise.
MXORT_INLINE void StoreColumns(const MatMulArgs& args, int64_t row, int64_t n, int64_t columns, const float* total) {
  float values[kStripColumns];
  for (int64_t i = 0; i < columns; ++i) values[i] = total[i] * args.column_scale[n + i] + args.bias[n + i];
  char* y = static_cast<char*>(args.y) + static_cast<size_t>(row * args.spec->N + n) * DataTypeBytes(args.type);
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
template <class S, int kRows>
MXORT_INLINE void FloatTile(const MatMulArgs& args, int64_t panel, int64_t strip) {
  constexpr int kParts = kRows >= 4 ? 1 : kRows == 1 ? 4 : 2;
  using Vector = typename S::Vector;
  const uint8_t* p = args.packed + strip * StripBytes(args.blocks);
  const float* a = reinterpret_cast<const float*>(args.prepared + static_cast<size_t>(panel) * args.panel_stride);
  Vector total[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r] = S::Zero();
  for (int64_t group = 0; group < args.blocks; group += kGroupBlocks) {
    const int64_t group_blocks = args.blocks - group < kGroupBlocks ? args.blocks - group : kGroupBlocks;
    const uint8_t* scales = p + group_blocks * kBlockCodeBytes;
    for (int64_t b = 0; b < group_blocks; ++b, p += kBlockCodeBytes, scales += kStripColumns, a += kRows * kBlockSize) {
      Prefetch(p);
      Vector part[kRows][kParts];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) part[r][i] = S::Zero();
      }
      for (int i = 0; i < kBlockVectors; ++i) {
        const typename S::Codes codes = S::LoadCodes(p + i * kVectorBytes);
#pragma GCC unroll 8
        for (int e = 0; e < kVectorElements; ++e) {
          const Vector weight = S::Decode(codes, NibbleShift(e));
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            const Vector x = S::Broadcast(a + r * kBlockSize + i * kVectorElements + e);
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

template <class S>
struct FloatTiles {
  static constexpr int kMaxRows = S::kMaxRows;
  template <int kRows>
  static void Run(const MatMulArgs& args, int64_t panel, int64_t strip) {
    FloatTile<S, kRows>(args, panel, strip);
  }
};

// Tiles::Run<rows> for the panels and strips given. A strip's weights stay in the cache for all panels.
template <class Tiles, int kRows = Tiles::kMaxRows>
MXORT_INLINE void RunTile(int rows, const MatMulArgs& args, int64_t panel, int64_t strip) {
  if (rows == kRows) return Tiles::template Run<kRows>(args, panel, strip);
  if constexpr (kRows > 1) RunTile<Tiles, kRows - 1>(rows, args, panel, strip);
}
template <class Tiles>
MXORT_INLINE void ComputeTiles(const MatMulArgs& args, Range panels, Range strips) {
  for (int64_t strip = strips.begin; strip < strips.end; ++strip) {
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t left = args.M - panel * args.panel_rows;
      RunTile<Tiles>(left < args.panel_rows ? static_cast<int>(left) : args.panel_rows, args, panel, strip);
    }
  }
}

}  // namespace mxort

#endif  // MXORT_KERNELS_FLOAT_KERNEL_H_
