// The integer kernel's policy on 16 lanes, for the instructions that the including file was compiled with:
//
//                        VBMI                 without
//   decode               vpermb               mask and vpshufb
//                        VNNI                 without
//   products             vpdpbusd             vpmaddubsw, summed in 16 bits
#ifndef MXORT_KERNELS_INT8_AVX512_H_
#define MXORT_KERNELS_INT8_AVX512_H_

#include <immintrin.h>

#include "kernels/avx512.h"
#include "kernels/int8_kernel.h"

namespace mxort {
namespace {

struct Int8Avx512 {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;
  // A dot product a term and a sum a row, of 32 registers.
#if defined(__AVX512VNNI__)
  static constexpr int kMaxRows[] = {12, 8};
#else
  static constexpr int kMaxRows[] = {10, 7};
#endif

  MXORT_INLINE Floats Fill(float x) { return _mm512_set1_ps(x); }
  MXORT_INLINE Floats Load(const float* x) { return _mm512_loadu_ps(x); }
  MXORT_INLINE Floats Multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  MXORT_INLINE Floats Subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  MXORT_INLINE Ints Round(Floats x) { return _mm512_cvtps_epi32(x); }
  MXORT_INLINE Ints AtMost(Ints x, int most) { return _mm512_min_epi32(x, _mm512_set1_epi32(most)); }
  MXORT_INLINE unsigned Absmax(const float* block) {
    const Ints magnitude = _mm512_set1_epi32(static_cast<int>(kFloatMagnitude));
    const Ints x = _mm512_and_si512(_mm512_castps_si512(Load(block)), magnitude);
    const Ints y = _mm512_and_si512(_mm512_castps_si512(Load(block + 16)), magnitude);
    return _mm512_reduce_max_epu32(_mm512_max_epu32(x, y));
  }
  MXORT_INLINE int StoreBytes(const Ints* integers, int8_t* q) {
    const Ints x = integers[0], y = integers[1];
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(x), order));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(y), order));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(x, y));
  }
  MXORT_INLINE Ints Table() { return _mm512_broadcast_i32x4(_mm_setr_epi8(MXORT_INT8_WEIGHTS)); }
  MXORT_INLINE void Decode(const uint8_t* p, Ints* weights) {
    const Ints codes = _mm512_loadu_si512(p);
#if defined(__AVX512VBMI__)
    // vpermb looks at the low six bits of an index, and the table repeats every 16 entries, so the upper nibble of each
    // byte does not matter.
    weights[0] = _mm512_permutexvar_epi8(codes, Table());
    weights[1] = _mm512_permutexvar_epi8(_mm512_srli_epi32(codes, 4), Table());
#else
    const Ints mask = _mm512_set1_epi8(15);
    weights[0] = _mm512_shuffle_epi8(Table(), _mm512_and_si512(codes, mask));
    weights[1] = _mm512_shuffle_epi8(Table(), _mm512_and_si512(_mm512_srli_epi32(codes, 4), mask));
#endif
  }
  // Four bytes at p in every lane.
  MXORT_INLINE Ints Broadcast(const uint8_t* p) {
    int32_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return _mm512_set1_epi32(bits);
  }
  MXORT_INLINE void Accumulate(Ints& dot, const Ints* weights, const uint8_t* a) {
#if defined(__AVX512VNNI__)
    // In assembly because GCC 12 to 14 broadcast into a register first, which doubles the instructions of the inner
    // loop.
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      asm("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(dot)
          : "v"(weights[i]), "m"(*reinterpret_cast<const int32_t*>(a + 4 * i)));
    }
#else
    // A pair of products is at most 2 * 24 * 128 in magnitude, four of them 24576: no saturation.
    Ints sum = _mm512_maddubs_epi16(weights[0], Broadcast(a));
#pragma GCC unroll 3
    for (int i = 1; i < 4; ++i) sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(weights[i], Broadcast(a + 4 * i)));
    dot = _mm512_add_epi32(dot, _mm512_madd_epi16(sum, _mm512_set1_epi16(1)));
#endif
  }
  MXORT_INLINE Ints LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  MXORT_INLINE void AccumulateBytes(Ints& dot, const Ints* weights, const uint8_t* a) {
#if defined(__AVX512VNNI__)
    Accumulate(dot, weights, a);
#else
    // By nibbles, as pairs of whole bytes would saturate: eight products are at most 8 * 15 * 128 in magnitude.
    const Ints mask = _mm512_set1_epi8(15);
    Ints low = _mm512_setzero_si512(), high = low;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Ints q = Broadcast(a + 4 * i), upper = _mm512_and_si512(_mm512_srli_epi32(weights[i], 4), mask);
      low = _mm512_add_epi16(low, _mm512_maddubs_epi16(_mm512_and_si512(weights[i], mask), q));
      high = _mm512_add_epi16(high, _mm512_maddubs_epi16(upper, q));
    }
    dot = _mm512_add_epi32(dot, _mm512_madd_epi16(low, _mm512_set1_epi16(1)));
    dot = _mm512_add_epi32(dot, _mm512_madd_epi16(high, _mm512_set1_epi16(16)));
#endif
  }
  MXORT_INLINE Ints Combine(Ints first, Ints second) {
    return _mm512_add_epi32(_mm512_slli_epi32(first, kTermRatioBits), second);
  }
  MXORT_INLINE Floats ToFloat(Ints x) { return _mm512_cvtepi32_ps(x); }
  MXORT_INLINE Ints LoadExponents(const uint8_t* p) {
    const Ints bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_slli_epi32(bytes, kFloatMantissaBits);
  }
  MXORT_INLINE Floats Scales(Ints exponents, const uint8_t* bits) {
    return _mm512_castsi512_ps(_mm512_add_epi32(exponents, Broadcast(bits)));
  }
  MXORT_INLINE Floats MultiplyAdd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  MXORT_INLINE void Store(float* out, Floats x) { _mm512_storeu_ps(out, x); }
};

}  // namespace
}  // namespace mxort

#endif  // MXORT_KERNELS_INT8_AVX512_H_
