// A range of keys attended to by queries that share them: softmax in blocks of keys, each block rescaling what the ones
// before left (as FlashAttention does), so that no score leaves the first-level cache. Written once over a 16-lane
// vector policy `S` and compiled for each instruction set. No standard library here (mx_formats.h).
//
// S provides, beside what float_kernel.h asks for: WidenBytes and WidenNibbles (16 of them to DecodePair and Decode),
// Load, Max (x > y ? x : y), Largest and Sum (of a vector's lanes), SumEach (of 16 vectors), kProductRows and
// kProductVectors (a product's sums that fit its registers), and Words: NoWords, or what computes a few rows over an
// MXFP4 cache in integers (attention_words.h).
#ifndef MXORT_KERNELS_ATTENTION_KERNEL_H_
#define MXORT_KERNELS_ATTENTION_KERNEL_H_

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/layout.h"
#include "kernels/vector_math.h"
#include "mx_formats.h"

namespace mxort {

// c[r, 16 v..] += sum over i of a[r, i] b[i, 16 v..] for R rows and V vectors.
template <class S, int R, int V>
MXORT_INLINE void MultiplyTile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                               float* c, int64_t c_stride) {
  typename S::Vector sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[r][v] = S::Load(c + r * c_stride + v * kHeadVector);
  }
  for (int64_t i = 0; i < depth; ++i) {
    typename S::Vector row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = S::Load(b + i * b_stride + v * kHeadVector);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename S::Vector x = S::Broadcast(a + r * a_stride + i);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = S::MultiplyAdd(row[v], x, sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) S::Store(c + r * c_stride + v * kHeadVector, sums[r][v]);
  }
}
template <class S, int R, int V>
MXORT_INLINE void MultiplyRows(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                               int64_t depth, float* c, int64_t c_stride) {
  if (rows == R) return MultiplyTile<S, R, V>(a, a_stride, b, b_stride, depth, c, c_stride);
  if constexpr (R > 1) MultiplyRows<S, R - 1, V>(rows, a, a_stride, b, b_stride, depth, c, c_stride);
}

// c [rows, columns] += a [rows, depth] b [depth, columns]; columns a multiple of 16.
template <class S>
MXORT_INLINE void Multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_stride,
                           const float* b, int64_t b_stride, float* c, int64_t c_stride) {
  constexpr int kRows = S::kProductRows, kVectors = S::kProductVectors;
  for (int64_t r = 0; r < rows; r += kRows) {
    const int64_t some = rows - r < kRows ? rows - r : kRows;
    const float* from = a + r * a_stride;
    float* to = c + r * c_stride;
    int64_t n = 0;
    for (; n + kVectors * kHeadVector <= columns; n += kVectors * kHeadVector) {
      MultiplyRows<S, kRows, kVectors>(some, from, a_stride, b + n, b_stride, depth, to + n, c_stride);
    }
    for (; n < columns; n += kHeadVector) {
      MultiplyRows<S, kRows, 1>(some, from, a_stride, b + n, b_stride, depth, to + n, c_stride);
    }
  }
}

// keys [count, size] to [size, kKeyBlock], zeros behind them; by squares of four.
MXORT_INLINE void Transpose(const float* keys, int64_t stride, int64_t count, int64_t size, float* transposed) {
  for (int64_t k = 0; k < kKeyBlock; k += 4) {
    for (int64_t i = 0; i < size; i += 4) {
      Float4 row[4] = {};
      for (int64_t j = 0; j < 4 && k + j < count; ++j) {
        row[j] = *reinterpret_cast<const Float4*>(keys + (k + j) * stride + i);
      }
      const Float4 low01 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
      const Float4 low23 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
      const Float4 high01 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
      const Float4 high23 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
      float* to = transposed + i * kKeyBlock + k;
      *reinterpret_cast<Float4*>(to) = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
      *reinterpret_cast<Float4*>(to + kKeyBlock) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
      *reinterpret_cast<Float4*>(to + 2 * kKeyBlock) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
      *reinterpret_cast<Float4*>(to + 3 * kKeyBlock) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
    }
  }
}

// A block of scores: combine(x, y) of all its vectors, by halves, so that the order does not depend on their length.
template <class S, class Combine>
MXORT_INLINE typename S::Vector FoldBlock(const float* block, const Combine& combine) {
  static_assert(kKeyBlock == 4 * kHeadVector);
  const auto at = [&](int i) { return S::Load(block + i * kHeadVector); };
  return combine(combine(at(0), at(2)), combine(at(1), at(3)));
}

// cap * tanh(score / cap), tanh(x) = (1 - e) / (1 + e) with e = exp(-2 |x|) and the sign of x.
MXORT_INLINE void SoftCap(float cap, float* scores) {
  for (int k = 0; k < kKeyBlock; ++k) {
    const unsigned bits = FloatBits(scores[k]);
    const float e = Exp(BitsFloat(bits & kFloatMagnitude) * (-2.0f / cap));
    scores[k] = BitsFloat(FloatBits(cap * (1.0f - e) / (1.0f + e)) | (bits & ~kFloatMagnitude));
  }
}

MXORT_INLINE void AddMask(const AttentionTile& tile, int64_t begin, int64_t count, float* scores) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* mask = tile.mask + r * tile.mask_row + begin * tile.mask_key;
    if (tile.mask_key == 1) {
      for (int64_t k = 0; k < count; ++k) scores[r * kKeyBlock + k] += mask[k];
    } else {
      for (int64_t k = 0; k < count; ++k) scores[r * kKeyBlock + k] += mask[k * tile.mask_key];
    }
  }
}

// One row's scores of a block, of which those from `hidden` up to `visible` count, to their share of the softmax; what
// came before is rescaled.
template <class S>
MXORT_INLINE void SoftmaxRow(const AttentionTile& tile, int64_t row, int hidden, int visible, float* scores) {
  const bool partly = hidden > 0 || visible < kKeyBlock;
  if (tile.softcap > 0) SoftCap(tile.softcap, scores);
  if (partly) {
    for (int k = 0; k < kKeyBlock; ++k) scores[k] = k >= hidden && k < visible ? scores[k] : -__builtin_inff();
  }
  const float of_block = S::Largest(FoldBlock<S>(scores, [](auto x, auto y) { return S::Max(x, y); }));
  const float largest = of_block > tile.largest[row] ? of_block : tile.largest[row];
  const float factor = Exp(tile.largest[row] - largest);
  for (int k = 0; k < kKeyBlock; ++k) scores[k] = Exp(scores[k] - largest);
  if (partly) {
    for (int k = 0; k < kKeyBlock; ++k) scores[k] = k >= hidden && k < visible ? scores[k] : 0.0f;
  }
  const float total = S::Sum(FoldBlock<S>(scores, [](auto x, auto y) { return S::Add(x, y); }));
  tile.total[row] = tile.total[row] * factor + total;
  tile.largest[row] = largest;
  float* sums = tile.sums + row * tile.head_size;
  for (int64_t i = 0; i < tile.head_size; ++i) sums[i] *= factor;
}

// What a block's elements are multiplied with, by its scale's byte: 2^(byte - 127), and kShift, which makes numbers of
// what a policy decodes. Beyond float: infinity; only a block with a number that rounds to 2^128 has such a scale.
template <int kShift>
struct FactorTable {
  float values[256];
  constexpr FactorTable() : values() {
    values[0] = kShift < 0 ? 0x1p-127f / (1 << -kShift) : 0x1p-127f * (1 << kShift);
    for (int i = 1; i < 255; ++i) {
      values[i] = values[i - 1] < 0x1p127f ? 2 * values[i - 1] : __builtin_inff();
    }
    values[kScaleNaN] = __builtin_nanf("");
  }
};
template <int kShift>
static constexpr FactorTable<kShift> kFactors;

// A position's row in a cache, as vectors of 16 floats.
template <class S, CacheFormat kFormat>
struct CacheRow {
  static constexpr bool kWide = kFormat == CacheFormat::kMxfp8;
  static constexpr int kShift = kWide ? 15 - E4M3::kBias : S::kScaleShare < 1 ? -1 : 0;
  using Vector = typename S::Vector;

  MXORT_MEMBER CacheRow(const char* row, int64_t size)
      : bytes(reinterpret_cast<const uint8_t*>(row)), scales(bytes + (kWide ? size : size / 2)) {}
  // Floats i to i + 31, i a multiple of 32.
  MXORT_MEMBER void Block(int64_t i, Vector* x) const {
    const Vector factor = S::Broadcast(&kFactors<kShift>.values[scales[i / kBlockSize]]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      if constexpr (kWide) {
        x[half] = S::DecodePair(S::WidenBytes(bytes + i + half * kHeadVector), 0);
      } else {
        x[half] = S::Decode(S::WidenNibbles(bytes + (i + half * kHeadVector) / 2), 0);
      }
      x[half] = S::MultiplyAdd(x[half], factor, S::Zero());
    }
  }
  const uint8_t *bytes, *scales;
};
template <class S>
struct CacheRow<S, CacheFormat::kFloat> {
  MXORT_MEMBER CacheRow(const char* row, int64_t) : floats(reinterpret_cast<const float*>(row)) {}
  MXORT_MEMBER void Block(int64_t i, typename S::Vector* x) const {
    x[0] = S::Load(floats + i);
    x[1] = S::Load(floats + i + kHeadVector);
  }
  const float* floats;
};

// R rows' scores of `count` keys, [R, kKeyBlock]; what stands behind them up to a multiple of 16 is of no meaning. Four
// keys at a time: a load of q serves them all. Heads of a multiple of 32.
template <class S, CacheFormat kFormat, int R>
MXORT_INLINE void ScoresOfRows(const AttentionTile& tile, const float* q, const char* keys, int64_t count,
                               float* scores) {
  constexpr int kKeys = S::kProductVectors > 2 ? 4 : 1;
  const int64_t size = tile.head_size;
  for (int64_t first = 0; first < count; first += kHeadVector) {
    typename S::Vector sums[R][kHeadVector];
    for (int64_t k = 0; k < kHeadVector; k += kKeys) {
      const char* rows[kKeys];
      typename S::Vector sum[R][kKeys];
#pragma GCC unroll 4
      for (int n = 0; n < kKeys; ++n) {
        const int64_t key = first + k + n;
        rows[n] = keys + (key < count ? key : count - 1) * tile.stride;
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][n] = S::Zero();
      }
      for (int64_t i = 0; i < size; i += kBlockSize) {
        typename S::Vector x[kKeys][2];
#pragma GCC unroll 4
        for (int n = 0; n < kKeys; ++n) CacheRow<S, kFormat>(rows[n], size).Block(i, x[n]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
          for (int half = 0; half < 2; ++half) {
            const typename S::Vector part = S::Load(q + r * size + i + half * kHeadVector);
#pragma GCC unroll 4
            for (int n = 0; n < kKeys; ++n) sum[r][n] = S::MultiplyAdd(x[n][half], part, sum[r][n]);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < kKeys; ++n) sums[r][k + n] = sum[r][n];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) S::SumEach(sums[r], scores + r * kKeyBlock + first);
  }
}

// What the values weigh in R rows' sums, of kBlocks blocks of columns from `first` on.
template <class S, CacheFormat kFormat, int R, int kBlocks>
MXORT_INLINE void SumsOfColumns(const AttentionTile& tile, int64_t first, const float* scores, const char* values,
                                int64_t count, float* sums) {
  constexpr int kVectors = kBlocks * 2;
  typename S::Vector sum[R][kVectors];
  sums += first;
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = S::Load(sums + r * tile.head_size + v * kHeadVector);
  }
  for (int64_t k = 0; k < count; ++k, values += tile.stride) {
    const CacheRow<S, kFormat> row(values, tile.head_size);
    typename S::Vector x[kVectors];
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) row.Block(first + b * kBlockSize, x + 2 * b);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const typename S::Vector weight = S::Broadcast(scores + r * kKeyBlock + k);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = S::MultiplyAdd(x[v], weight, sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) S::Store(sums + r * tile.head_size + v * kHeadVector, sum[r][v]);
  }
}
template <class S, CacheFormat kFormat, int R>
MXORT_INLINE void SumsOfRows(const AttentionTile& tile, const float* scores, const char* values, int64_t count,
                             float* sums) {
  constexpr int kBlocks = kFormat != CacheFormat::kFloat && S::kProductVectors > 2 ? 2 : 1;  // floats gain nothing
  int64_t i = 0;
  for (; i + kBlocks * kBlockSize <= tile.head_size; i += kBlocks * kBlockSize) {
    SumsOfColumns<S, kFormat, R, kBlocks>(tile, i, scores, values, count, sums);
  }
  if (i < tile.head_size) SumsOfColumns<S, kFormat, R, 1>(tile, i, scores, values, count, sums);
}

template <int kRows>
struct Count {
  MXORT_MEMBER constexpr int operator()() const { return kRows; }
};
// body(first row, R) for all rows of a tile, R of them at a time.
template <int kMost, class Body>
MXORT_INLINE void ByRows(int64_t rows, int64_t first, const Body& body) {
  for (; first + kMost <= rows; first += kMost) body(first, Count<kMost>());
  if constexpr (kMost > 1) ByRows<kMost - 1>(rows, first, body);
}

// Quantised rows [count, size] as floats.
template <class S, CacheFormat kFormat>
MXORT_INLINE void DecodeRows(const AttentionTile& tile, const char* rows, int64_t count, float* to) {
  for (int64_t r = 0; r < count; ++r, rows += tile.stride) {
    for (int64_t i = 0; i < tile.head_size; i += kBlockSize, to += kBlockSize) {
      typename S::Vector x[2];
      CacheRow<S, kFormat>(rows, tile.head_size).Block(i, x);
      S::Store(to, x[0]);
      S::Store(to + kHeadVector, x[1]);
    }
  }
}

// Rows as floats, and how far apart: where they are, or decoded to `to`.
struct FloatRows {
  const float* data;
  int64_t stride;
};
template <class S, CacheFormat kFormat>
MXORT_INLINE FloatRows RowsOf(const AttentionTile& tile, const char* rows, int64_t count, float* to) {
  if constexpr (kFormat == CacheFormat::kFloat) {
    return {reinterpret_cast<const float*>(rows), tile.stride / static_cast<int64_t>(sizeof(float))};
  } else {
    DecodeRows<S, kFormat>(tile, rows, count, to);
    return {to, tile.head_size};
  }
}

// Rows that go key by key.
inline constexpr int64_t kFewRows = 8;
MXORT_INLINE bool IsFew(const AttentionTile& tile) { return tile.rows <= kFewRows && tile.head_size % kBlockSize == 0; }

// Scores of `count` keys, [rows, kKeyBlock], and what the values weigh in the sums. A few rows go key by key, more by
// products of blocks, of a transposed copy of the keys and of values that are floats.
template <class S, CacheFormat kFormat>
struct Block {
  static constexpr int kTogether = S::kProductVectors > 2 ? 4 : 2;
  MXORT_INLINE void Scores(const AttentionTile& tile, const char* keys, int64_t count, float* transposed, float* scores,
                           float* decoded) {
    if (IsFew(tile)) {
      return ByRows<kTogether>(tile.rows, 0, [&](int64_t r, auto rows) {
        ScoresOfRows<S, kFormat, rows()>(tile, tile.q + r * tile.head_size, keys, count, scores + r * kKeyBlock);
      });
    }
    const FloatRows rows = RowsOf<S, kFormat>(tile, keys, count, decoded);
    Transpose(rows.data, rows.stride, count, tile.head_size, transposed);
    __builtin_memset(scores, 0, static_cast<size_t>(tile.rows * kKeyBlock) * sizeof(float));
    Multiply<S>(tile.rows, kKeyBlock, tile.head_size, tile.q, tile.head_size, transposed, kKeyBlock, scores, kKeyBlock);
  }
  MXORT_INLINE void Sums(const AttentionTile& tile, const char* values, int64_t count, const float* scores,
                         float* decoded) {
    if (IsFew(tile)) {
      return ByRows<kTogether>(tile.rows, 0, [&](int64_t r, auto rows) {
        SumsOfRows<S, kFormat, rows()>(tile, scores + r * kKeyBlock, values, count, tile.sums + r * tile.head_size);
      });
    }
    const FloatRows rows = RowsOf<S, kFormat>(tile, values, count, decoded);
    Multiply<S>(tile.rows, tile.head_size, count, scores, kKeyBlock, rows.data, rows.stride, tile.sums, tile.head_size);
  }
};

// The block of keys and values from `key` on, to where the next turn finds it.
MXORT_INLINE void PrefetchBlock(const AttentionTile& tile, int64_t key) {
  constexpr int64_t kLine = 64;
  const int64_t count = tile.end - key < kKeyBlock ? tile.end - key : kKeyBlock;
  const char *keys = tile.keys + key * tile.stride, *values = tile.values + key * tile.stride;
  for (int64_t at = 0; at < count * tile.stride; at += kLine) {
    __builtin_prefetch(keys + at);
    __builtin_prefetch(values + at);
  }
}

// Of an instruction set that has no such integers.
struct NoWords {
  static constexpr bool kAvailable = false;
  MXORT_MEMBER NoWords(const AttentionTile&, float*) {}
  MXORT_MEMBER bool Scores(const AttentionTile&, const char*, int64_t, float*) { return false; }
  MXORT_MEMBER bool Sums(const AttentionTile&, const char*, int64_t, const float*) { return false; }
};

template <class S, CacheFormat kFormat, class Words>
MXORT_INLINE void AttendRangeWith(const AttentionTile& tile) {
  float *transposed = tile.scratch, *scores = transposed + tile.head_size * kKeyBlock;
  float* decoded = scores + tile.rows * kKeyBlock;
  Words words(tile, transposed);
  for (int64_t begin = tile.begin; begin < tile.end; begin += kKeyBlock) {
    const int64_t count = tile.end - begin < kKeyBlock ? tile.end - begin : kKeyBlock;
    const char *keys = tile.keys + begin * tile.stride, *values = tile.values + begin * tile.stride;
    if (IsFew(tile)) PrefetchBlock(tile, begin + count);
    if (!words.Scores(tile, keys, count, scores)) {
      Block<S, kFormat>::Scores(tile, keys, count, transposed, scores, decoded);
    }
    if (tile.mask) AddMask(tile, begin, count, scores);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t first = tile.firsts[r] - begin, hidden = first < 0 ? 0 : first;
      const int64_t left = tile.limits[r] - begin, visible = left < count ? left : count;
      if (visible > hidden) {
        SoftmaxRow<S>(tile, r, static_cast<int>(hidden), static_cast<int>(visible), scores + r * kKeyBlock);
      } else {
        __builtin_memset(scores + r * kKeyBlock, 0, kKeyBlock * sizeof(float));
      }
    }
    if (!words.Sums(tile, values, count, scores)) Block<S, kFormat>::Sums(tile, values, count, scores, decoded);
  }
}
template <class S, CacheFormat kFormat>
MXORT_INLINE void AttendRangeOf(const AttentionTile& tile) {
  if constexpr (kFormat == CacheFormat::kMxfp4 && S::Words::kAvailable) {
    if (IsFew(tile)) return AttendRangeWith<S, kFormat, typename S::Words>(tile);
  }
  AttendRangeWith<S, kFormat, NoWords>(tile);
}

template <class S>
MXORT_INLINE void AttendRange(const AttentionTile& tile) {
  switch (tile.format) {
    case CacheFormat::kFloat:
      return AttendRangeOf<S, CacheFormat::kFloat>(tile);
    case CacheFormat::kMxfp8:
      return AttendRangeOf<S, CacheFormat::kMxfp8>(tile);
    case CacheFormat::kMxfp4:
      return AttendRangeOf<S, CacheFormat::kMxfp4>(tile);
  }
}

}  // namespace mxort

#endif  // MXORT_KERNELS_ATTENTION_KERNEL_H_
