// Few queries over an MXFP4 cache, in words of 16 bits on AVX-512 (BW): a nibble's value, twice E2M1, is looked up as a
// word, and products of words are summed in 32 bits, exactly. Half the instructions of decoding to floats.
//
// What is rounded: a row of q to 2^-16 of its largest magnitude, once a tile; weights of the softmax times the values'
// scales to 2^-16 of the largest among 64 keys, for each row and block of columns. Rows, scales and weights beyond
// 2^60 or below 2^-60 (and NaN) are left to the float kernel, so that nothing overflows in between.
#ifndef MXORT_KERNELS_ATTENTION_WORDS_H_
#define MXORT_KERNELS_ATTENTION_WORDS_H_

#include <immintrin.h>

#include "kernels/attention_kernel.h"
#include "kernels/avx512.h"
#include "mx_formats.h"

namespace mxort {

inline constexpr int kWordKeys = 4;                    // keys in a register, 16 bytes (a block) of each
inline constexpr int kWordsOfBlock = kBlockSize / 4;   // of 4 codes
inline constexpr float kWordMost = 32767.0f;           // of a rounded number
inline constexpr float kWordLargest = 0x1p60f;         // of what is rounded, and of scales
inline constexpr int kWordScale = kScaleBias + 60;     // the byte of that scale
inline constexpr unsigned kWordSmallest = 0x21800000;  // bits of 2^-60

// Whether `largest`, a magnitude, can be rounded.
MXORT_INLINE bool IsPlainWord(float largest) {
  return largest == 0 || (FloatBits(largest) >= kWordSmallest && largest <= kWordLargest);
}

// The 16 bytes of a block of four keys, [key][8 words].
MXORT_INLINE __m512i LoadBlocks(const uint8_t* p, int64_t stride) {
  const auto load = [](const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
  __m512i x = _mm512_castsi128_si512(load(p));
  x = _mm512_inserti32x4(x, load(p + stride), 1);
  x = _mm512_inserti32x4(x, load(p + 2 * stride), 2);
  return _mm512_inserti32x4(x, load(p + 3 * stride), 3);
}

// Nibble n of each word as twice its value: vpermw looks at the low five bits of an index, so the table stands twice.
MXORT_INLINE void DecodeWords(__m512i x, __m512i* codes) {
  const __m512i table = _mm512_set_epi16(-12, -8, -6, -4, -3, -2, -1, 0, 12, 8, 6, 4, 3, 2, 1, 0, -12, -8, -6, -4, -3,
                                         -2, -1, 0, 12, 8, 6, 4, 3, 2, 1, 0);
  codes[0] = _mm512_permutexvar_epi16(x, table);
  codes[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 4), table);
  codes[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 8), table);
  codes[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 12), table);
}

MXORT_INLINE __m512i AddProducts(__m512i sum, __m512i a, __m512i b) {
#if defined(__AVX512VNNI__)
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

// Rows of q as words, [rows][blocks][4 nibbles][8 words], and what a step of each is worth, for codes that are twice
// their values. False where a row cannot be rounded.
MXORT_INLINE bool RoundQueries(const AttentionTile& tile, int16_t* words, float* steps) {
  const int64_t size = tile.head_size;
  for (int64_t r = 0; r < tile.rows; ++r, words += size) {
    const float* q = tile.q + r * size;
    __m512 most = _mm512_setzero_ps();
    __mmask16 nan = 0;
    for (int64_t i = 0; i < size; i += kHeadVector) {
      const __m512 x = _mm512_abs_ps(_mm512_loadu_ps(q + i));
      nan |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
      most = _mm512_max_ps(x, most);
    }
    const float largest = _mm512_reduce_max_ps(most);
    if (nan || !IsPlainWord(largest)) return false;
    steps[r] = largest / kWordMost * 0.5f;
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? kWordMost / largest : 0);
    for (int64_t i = 0; i < size; i += kBlockSize) {
      alignas(64) int32_t rounded[kBlockSize];
      for (int half = 0; half < 2; ++half) {
        const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(q + i + half * kHeadVector), inverse);
        _mm512_store_si512(rounded + half * kHeadVector, _mm512_cvtps_epi32(x));
      }
      for (int n = 0; n < 4; ++n) {
        for (int j = 0; j < kWordsOfBlock; ++j) {
          words[i + n * kWordsOfBlock + j] = static_cast<int16_t>(rounded[4 * j + n]);
        }
      }
    }
  }
  return true;
}

// The scales of kKeyBlock rows, [blocks][kKeyBlock], as floats. False where one is beyond kWordLargest or NaN.
MXORT_INLINE bool ReadScales(const uint8_t* rows, int64_t stride, int64_t size, float* scales) {
  const uint8_t* from = rows + size / 2;
  __m512i most = _mm512_setzero_si512();
  for (int64_t b = 0; b < size / kBlockSize; ++b, ++from, scales += kKeyBlock) {
    alignas(64) uint8_t bytes[kKeyBlock];
#pragma GCC unroll 8
    for (int k = 0; k < kKeyBlock; ++k) bytes[k] = from[k * stride];
    most = _mm512_max_epu8(most, _mm512_load_si512(bytes));
    for (int k = 0; k < kKeyBlock; k += kHeadVector) _mm512_storeu_ps(scales + k, LoadScales16(bytes + k));
  }
  return _mm512_cmpgt_epu8_mask(most, _mm512_set1_epi8(static_cast<char>(kWordScale))) == 0;
}

// Scores of kKeyBlock keys with R rows, [R, kKeyBlock]. A sum's lanes are four of each of four keys.
template <int R>
MXORT_INLINE void WordScores(const uint8_t* keys, int64_t stride, int64_t size, const int16_t* q, const float* steps,
                             const float* scales, float* scores) {
  const __m512i quarters = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i by_key = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  for (int first = 0; first < kKeyBlock; first += kHeadVector) {
    __m512 sums[R][4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const int key = first + g * kWordKeys;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums[r][g] = _mm512_setzero_ps();
      for (int64_t b = 0; b < size / kBlockSize; ++b) {
        __m512i codes[4];
        DecodeWords(LoadBlocks(keys + key * stride + b * (kBlockSize / 2), stride), codes);
        const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales + b * kKeyBlock + key));
        const __m512 scale = _mm512_permutevar_ps(four, quarters);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
          for (int n = 0; n < 4; ++n) {
            const auto* part = reinterpret_cast<const __m128i*>(q + r * size + b * kBlockSize + n * kWordsOfBlock);
            sum = AddProducts(sum, codes[n], _mm512_broadcast_i32x4(_mm_loadu_si128(part)));
          }
          sums[r][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, sums[r][g]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512 a =
          _mm512_add_ps(_mm512_unpacklo_ps(sums[r][0], sums[r][1]), _mm512_unpackhi_ps(sums[r][0], sums[r][1]));
      const __m512 b =
          _mm512_add_ps(_mm512_unpacklo_ps(sums[r][2], sums[r][3]), _mm512_unpackhi_ps(sums[r][2], sums[r][3]));
      const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
      const __m512 all =
          _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
      _mm512_storeu_ps(scores + r * kKeyBlock + first,
                       _mm512_mul_ps(_mm512_permutexvar_ps(by_key, all), _mm512_set1_ps(steps[r])));
    }
  }
}

// Weights [rows, kKeyBlock] times a block's scales [kKeyBlock] as words, and what a step of each row is worth. False
// where a row cannot be rounded.
MXORT_INLINE bool RoundWeights(const float* weights, int64_t rows, const float* scales, int16_t* words, float* steps) {
  for (int64_t r = 0; r < rows; ++r, weights += kKeyBlock, words += kKeyBlock) {
    __m512 x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm512_mul_ps(_mm512_loadu_ps(weights + i * kHeadVector), _mm512_loadu_ps(scales + i * kHeadVector));
    }
    // A NaN would be lost in a maximum; in a sum of what is not negative it stays.
    const float sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3])));
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3])));
    if (!(sum <= kKeyBlock * kWordLargest) || !IsPlainWord(largest)) return false;
    steps[r] = largest / kWordMost * 0.5f;
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? kWordMost / largest : 0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i word = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + i * kHeadVector), word);
    }
  }
  return true;
}

// Four vectors of sums, nibble n of word j in lanes 2j and 2j + 1, to a block's 32 columns.
MXORT_INLINE void AddColumns(const __m512i* sums, float step, float* to) {
  __m512i both[4];
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) both[n] = _mm512_add_epi32(sums[n], _mm512_shuffle_epi32(sums[n], _MM_PERM_CDAB));
  const __m512i low = _mm512_mask_blend_epi32(0xAAAA, both[0], both[1]);
  const __m512i high = _mm512_mask_blend_epi32(0xAAAA, both[2], both[3]);
  const __m512i even = _mm512_unpacklo_epi64(low, high), odd = _mm512_unpackhi_epi64(low, high);
  const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0),
                second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  const __m512 factor = _mm512_set1_ps(step);
  const auto add = [&](__m512i order, float* out) {
    const __m512 x = _mm512_cvtepi32_ps(_mm512_permutex2var_epi64(even, order, odd));
    _mm512_storeu_ps(out, _mm512_fmadd_ps(x, factor, _mm512_loadu_ps(out)));
  };
  add(first, to);
  add(second, to + kHeadVector);
}

// What kKeyBlock values weigh in one block of columns of R rows' sums, `size` apart.
template <int R>
MXORT_INLINE void WordSums(const uint8_t* values, int64_t stride, int64_t size, const int16_t* weights,
                           const float* steps, float* sums) {
  // Words of keys 0 and 1 in even lanes, of keys 2 and 3 in odd ones.
  alignas(64) static constexpr int16_t kPairs[32] = {0, 8,  16, 24, 1, 9,  17, 25, 2, 10, 18, 26, 3, 11, 19, 27,
                                                     4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31};
  const __m512i pairs = _mm512_load_si512(kPairs);
  __m512i sum[R][4];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) sum[r][n] = _mm512_setzero_si512();
  }
  for (int key = 0; key < kKeyBlock; key += kWordKeys) {
    __m512i codes[4];
    DecodeWords(_mm512_permutexvar_epi16(pairs, LoadBlocks(values + key * stride, stride)), codes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const auto* four = reinterpret_cast<const __m128i*>(weights + r * kKeyBlock + key);
      const __m512i weight = _mm512_broadcastq_epi64(_mm_loadl_epi64(four));
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) sum[r][n] = AddProducts(sum[r][n], codes[n], weight);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) AddColumns(sum[r], steps[r], sums + r * size);
}

// A tile's rows in words, and what a block of keys needs beside them; AttentionScratch's place for keys as floats.
class AttentionWords {
 public:
  static constexpr bool kAvailable = true;

  MXORT_MEMBER AttentionWords(const AttentionTile& tile, float* memory)
      : scales_(memory),
        steps_(scales_ + tile.head_size / kBlockSize * kKeyBlock),
        queries_(reinterpret_cast<int16_t*>(steps_ + kMostRows * (1 + tile.head_size / kBlockSize))),
        weights_(queries_ + tile.rows * tile.head_size),
        padded_(reinterpret_cast<uint8_t*>(weights_ + tile.head_size / kBlockSize * tile.rows * kKeyBlock)),
        plain_(RoundQueries(tile, queries_, steps_)) {}

  // False: of numbers that are left to the float kernel.
  MXORT_MEMBER bool Scores(const AttentionTile& tile, const char* keys, int64_t count, float* scores) {
    const uint8_t* rows = Whole(tile, keys, count);
    if (!plain_ || !ReadScales(rows, tile.stride, tile.head_size, scales_)) return false;
    ByRows<4>(tile.rows, 0, [&](int64_t r, auto some) {
      WordScores<some()>(rows, tile.stride, tile.head_size, queries_ + r * tile.head_size, steps_ + r, scales_,
                         scores + r * kKeyBlock);
    });
    return true;
  }
  MXORT_MEMBER bool Sums(const AttentionTile& tile, const char* values, int64_t count, const float* scores) {
    const int64_t blocks = tile.head_size / kBlockSize;
    const uint8_t* rows = Whole(tile, values, count);
    if (!ReadScales(rows, tile.stride, tile.head_size, scales_)) return false;
    float* steps = steps_ + kMostRows;
    for (int64_t b = 0; b < blocks; ++b) {
      int16_t* weights = weights_ + b * tile.rows * kKeyBlock;
      if (!RoundWeights(scores, tile.rows, scales_ + b * kKeyBlock, weights, steps + b * kMostRows)) return false;
    }
    ByRows<4>(tile.rows, 0, [&](int64_t r, auto some) {
      for (int64_t b = 0; b < blocks; ++b) {
        WordSums<some()>(rows + b * (kBlockSize / 2), tile.stride, tile.head_size,
                         weights_ + (b * tile.rows + r) * kKeyBlock, steps + b * kMostRows + r,
                         tile.sums + r * tile.head_size + b * kBlockSize);
      }
    });
    return true;
  }

 private:
  static constexpr int64_t kMostRows = kFewRows;

  // kKeyBlock rows: those of the cache, or a copy with rows of zeros behind them.
  MXORT_MEMBER const uint8_t* Whole(const AttentionTile& tile, const char* rows, int64_t count) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(rows);
    if (count == kKeyBlock) return bytes;
    const auto used = static_cast<size_t>(count * tile.stride);
    __builtin_memcpy(padded_, bytes, used);
    __builtin_memset(padded_ + used, 0, static_cast<size_t>(kKeyBlock * tile.stride) - used);
    return padded_;
  }

  float *scales_, *steps_;  // [blocks][kKeyBlock]; of the queries [kMostRows], and of the weights [blocks][kMostRows]
  int16_t *queries_, *weights_;
  uint8_t* padded_;
  bool plain_;
};

}  // namespace mxort

#endif  // MXORT_KERNELS_ATTENTION_WORDS_H_
