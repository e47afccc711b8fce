// A range of keys attended to by queries that share them: softmax in blocks of keys, each block rescaling what the ones
// before left (as FlashAttention does), so that no score leaves the first-level cache. Written once over a 16-lane
// vector policy `S` and compiled for each instruction set. No standard library here (mx_formats.h).
//
// S provides, beside what float_kernel.h asks for: Load, Sum (of a vector's lanes), kProductRows and kProductVectors
// (a product's sums that fit its registers).
#ifndef MXORT_KERNELS_ATTENTION_KERNEL_H_
#define MXORT_KERNELS_ATTENTION_KERNEL_H_

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/vector_math.h"
#include "mx_formats.h"

namespace mxort {

inline constexpr int kKeyBlock = 64;

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

// Scores of `count` keys, [rows, kKeyBlock]; what is beyond them is zero or left alone. A few rows go key by key, more
// by a transposed copy of the keys.
template <class S>
MXORT_INLINE void Scores(const AttentionTile& tile, const float* keys, int64_t count, float* transposed,
                         float* scores) {
  constexpr int64_t kFewRows = 8;
  const int64_t size = tile.head_size;
  if (tile.rows <= kFewRows) {
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t r = 0; r < tile.rows; ++r) {
        typename S::Vector sum = S::Zero();
        for (int64_t i = 0; i < size; i += kHeadVector) {
          sum = S::MultiplyAdd(S::Load(tile.q + r * size + i), S::Load(keys + k * tile.stride + i), sum);
        }
        scores[r * kKeyBlock + k] = S::Sum(sum);
      }
    }
    return;
  }
  Transpose(keys, tile.stride, count, size, transposed);
  __builtin_memset(scores, 0, static_cast<size_t>(tile.rows * kKeyBlock) * sizeof(float));
  Multiply<S>(tile.rows, kKeyBlock, size, tile.q, size, transposed, kKeyBlock, scores, kKeyBlock);
}

// fold(x, y) over all of a block, by halves: loops that a compiler turns into vectors, in an order that does not depend
// on how long those are.
template <class Fold>
MXORT_INLINE float FoldBlock(const float* block, const Fold& fold) {
  float half[kKeyBlock / 2];
  for (int i = 0; i < kKeyBlock / 2; ++i) half[i] = fold(block[i], block[i + kKeyBlock / 2]);
  for (int i = 0; i < kKeyBlock / 4; ++i) half[i] = fold(half[i], half[i + kKeyBlock / 4]);
  for (int i = 0; i < kKeyBlock / 8; ++i) half[i] = fold(half[i], half[i + kKeyBlock / 8]);
  for (int i = 0; i < kKeyBlock / 16; ++i) half[i] = fold(half[i], half[i + kKeyBlock / 16]);
  return fold(fold(half[0], half[2]), fold(half[1], half[3]));
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

// One row's scores of a block, `visible` of which count, to their share of the softmax; what came before is rescaled.
MXORT_INLINE void SoftmaxRow(const AttentionTile& tile, int64_t row, int visible, float* scores) {
  if (tile.softcap > 0) SoftCap(tile.softcap, scores);
  if (visible < kKeyBlock) {
    for (int k = 0; k < kKeyBlock; ++k) scores[k] = k < visible ? scores[k] : -__builtin_inff();
  }
  const auto max = [](float x, float y) { return x > y ? x : y; };
  const float largest = max(FoldBlock(scores, max), tile.largest[row]);
  const float factor = Exp(tile.largest[row] - largest);
  for (int k = 0; k < kKeyBlock; ++k) scores[k] = Exp(scores[k] - largest);
  if (visible < kKeyBlock) {
    for (int k = 0; k < kKeyBlock; ++k) scores[k] = k < visible ? scores[k] : 0.0f;
  }
  const float total = FoldBlock(scores, [](float x, float y) { return x + y; });
  tile.total[row] = tile.total[row] * factor + total;
  tile.largest[row] = largest;
  float* sums = tile.sums + row * tile.head_size;
  for (int64_t i = 0; i < tile.head_size; ++i) sums[i] *= factor;
}

template <class S>
MXORT_INLINE void AttendRange(const AttentionTile& tile) {
  float *transposed = tile.scratch, *scores = transposed + tile.head_size * kKeyBlock;
  for (int64_t begin = tile.begin; begin < tile.end; begin += kKeyBlock) {
    const int64_t count = tile.end - begin < kKeyBlock ? tile.end - begin : kKeyBlock;
    Scores<S>(tile, tile.keys + begin * tile.stride, count, transposed, scores);
    if (tile.mask) AddMask(tile, begin, count, scores);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t left = tile.limits[r] - begin, visible = left < 0 ? 0 : left < count ? left : count;
      if (visible > 0) {
        SoftmaxRow(tile, r, static_cast<int>(visible), scores + r * kKeyBlock);
      } else {
        __builtin_memset(scores + r * kKeyBlock, 0, kKeyBlock * sizeof(float));
      }
    }
    Multiply<S>(tile.rows, tile.head_size, count, scores, kKeyBlock, tile.values + begin * tile.stride, tile.stride,
                tile.sums, tile.head_size);
  }
}

}  // namespace mxort

#endif  // MXORT_KERNELS_ATTENTION_KERNEL_H_
