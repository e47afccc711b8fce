// The integer kernel's policy on 8 lanes: products by vpdpbusd where the including file was compiled with AVX-VNNI,
// else by vpmaddubsw, summed in 16 bits.
#ifndef MXORT_KERNELS_INT8_AVX2_H_
#define MXORT_KERNELS_INT8_AVX2_H_

#include <immintrin.h>

#include "kernels/int8_kernel.h"

namespace mxort {
namespace {

struct Int8Avx2 {
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8;
  // A dot product a term and row; the sums of the rows wait in memory. 4 of the 16 registers hold weights.
  static constexpr int kMaxRows[] = {8, 4};

  MXORT_INLINE Floats Fill(float x) { return _mm256_set1_ps(x); }
  MXORT_INLINE Floats Load(const float* x) { return _mm256_loadu_ps(x); }
  MXORT_INLINE Floats Multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  MXORT_INLINE Floats Subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  MXORT_INLINE Ints Round(Floats x) { return _mm256_cvtps_epi32(x); }
  MXORT_INLINE Ints AtMost(Ints x, int most) { return _mm256_min_epi32(x, _mm256_set1_epi32(most)); }
  MXORT_INLINE unsigned Absmax(const float* block) { return BlockAbsmax(block); }

  // Packing goes by 128-bit halves: with x_i the i-th four of 32 integers,
  //   16 bits  x0 x2 | x1 x3   and   x4 x6 | x5 x7,   8 bits  x0 x2 x4 x6 | x1 x3 x5 x7,
  // and interleaving the halves' bytes gives the order of the nibbles: 0, 4, 1, 5, 2, 6, 3, 7, 8, 12, ...
  MXORT_INLINE int StoreBytes(const Ints* x, int8_t* q) {
    const Ints bytes = _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
    const __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm_unpacklo_epi8(even, odd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm_unpackhi_epi8(even, odd));
    const Ints sum = _mm256_add_epi32(_mm256_add_epi32(x[0], x[1]), _mm256_add_epi32(x[2], x[3]));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
  }
  MXORT_INLINE void Decode(const uint8_t* p, Ints* weights) {
    const Ints table = _mm256_broadcastsi128_si256(_mm_setr_epi8(MXORT_INT8_WEIGHTS));
    const Ints codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), mask = _mm256_set1_epi8(15);
    weights[0] = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, mask));
    weights[1] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(codes, 4), mask));
  }
  // Four bytes at p in every lane.
  MXORT_INLINE Ints Broadcast(const uint8_t* p) {
    int32_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return _mm256_set1_epi32(bits);
  }
  MXORT_INLINE void Accumulate(Ints& dot, const Ints* weights, const uint8_t* a) {
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) dot = _mm256_dpbusd_epi32(dot, weights[i], Broadcast(a + 4 * i));
#else
    // A pair of products is at most 2 * 24 * 128 in magnitude, four of them 24576: no saturation.
    Ints sum = _mm256_maddubs_epi16(weights[0], Broadcast(a));
#pragma GCC unroll 3
    for (int i = 1; i < 4; ++i) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights[i], Broadcast(a + 4 * i)));
    dot = _mm256_add_epi32(dot, _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
#endif
  }
  MXORT_INLINE Ints LoadBytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  MXORT_INLINE void AccumulateBytes(Ints& dot, const Ints* weights, const uint8_t* a) {
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
    Accumulate(dot, weights, a);
#else
    // By nibbles, as pairs of whole bytes would saturate: eight products are at most 8 * 15 * 128 in magnitude.
    const Ints mask = _mm256_set1_epi8(15);
    Ints low = _mm256_setzero_si256(), high = low;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Ints q = Broadcast(a + 4 * i), upper = _mm256_and_si256(_mm256_srli_epi32(weights[i], 4), mask);
      low = _mm256_add_epi16(low, _mm256_maddubs_epi16(_mm256_and_si256(weights[i], mask), q));
      high = _mm256_add_epi16(high, _mm256_maddubs_epi16(upper, q));
    }
    dot = _mm256_add_epi32(dot, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
    dot = _mm256_add_epi32(dot, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
#endif
  }
  MXORT_INLINE Ints Combine(Ints first, Ints second) {
    return _mm256_add_epi32(_mm256_slli_epi32(first, kTermRatioBits), second);
  }
  MXORT_INLINE Floats ToFloat(Ints x) { return _mm256_cvtepi32_ps(x); }
  MXORT_INLINE Ints LoadExponents(const uint8_t* p) {
    const Ints bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_slli_epi32(bytes, kFloatMantissaBits);
  }
  MXORT_INLINE Floats Scales(Ints exponents, const uint8_t* bits) {
    return _mm256_castsi256_ps(_mm256_add_epi32(exponents, Broadcast(bits)));
  }
  MXORT_INLINE Floats MultiplyAdd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  MXORT_INLINE void Store(float* out, Floats x) { _mm256_storeu_ps(out, x); }
};

}  // namespace
}  // namespace mxort

#endif  // MXORT_KERNELS_INT8_AVX2_H_
