// The policy of the float kernels on 16-lane registers: AVX-512 F, BW, DQ, VL, and VNNI where the including file was
// compiled with it (attention_words.h).
#ifndef MXORT_KERNELS_AVX512_FLOATS_H_
#define MXORT_KERNELS_AVX512_FLOATS_H_

#include <immintrin.h>

#include "kernels/attention_words.h"
#include "kernels/avx512.h"
#include "kernels/float_kernel.h"

namespace mxort {
namespace {

struct Avx512 {
  using Vector = __m512;
  using Codes = __m512i;
  using Pairs = __m256i;
  static constexpr int kMaxRows = 12;
  static constexpr float kScaleShare = 1.0f;

  using Words = AttentionWords;
  static constexpr int kProductRows = 6, kProductVectors = 4;  // 24 sums and 4 vectors of 32 registers

  MXORT_INLINE Vector Zero() { return _mm512_setzero_ps(); }
  MXORT_INLINE Vector Load(const float* x) { return _mm512_loadu_ps(x); }
  MXORT_INLINE Vector Max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  MXORT_INLINE float Largest(Vector x) { return _mm512_reduce_max_ps(x); }
  MXORT_INLINE float Sum(Vector x) { return _mm512_reduce_add_ps(x); }
  // out[i] = the sum of x[i]'s lanes: neighbours are interleaved and added, four times.
  MXORT_INLINE void SumEach(const Vector* x, float* out) {
    Vector four[4], two[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vector a =
          _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i], x[4 * i + 1]), _mm512_unpackhi_ps(x[4 * i], x[4 * i + 1]));
      const Vector b =
          _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i + 2], x[4 * i + 3]), _mm512_unpackhi_ps(x[4 * i + 2], x[4 * i + 3]));
      const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
      const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
      four[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) two[i] = AddQuarters(four[2 * i], four[2 * i + 1]);
    _mm512_storeu_ps(out, AddQuarters(two[0], two[1]));
  }
  // Quarters: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
  MXORT_INLINE Vector AddQuarters(Vector a, Vector b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  }
  MXORT_INLINE Vector Broadcast(const float* x) { return _mm512_set1_ps(*x); }
  MXORT_INLINE Vector Add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  MXORT_INLINE Vector MultiplyAdd(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  MXORT_INLINE Codes LoadCodes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  // vpermps looks at the low four bits of each index only: the whole E2M1 code.
  MXORT_INLINE Vector Decode(Codes codes, int shift) {
    const __m512 table = _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, static_cast<unsigned>(shift)), table);
  }
  MXORT_INLINE Vector DecodeByte(Codes codes, int shift) {
    const Codes byte = _mm512_and_si512(_mm512_srli_epi32(codes, static_cast<unsigned>(shift)), _mm512_set1_epi32(255));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(byte, _mm512_set1_epi32(kInt8Offset)));
  }
  MXORT_INLINE Pairs LoadPairs(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  // 16 bytes, and 16 nibbles from the low one of a byte on, one a lane.
  MXORT_INLINE Pairs WidenBytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  MXORT_INLINE Codes WidenNibbles(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)));
  }
  // The byte to the top of its lane, then one to the right with its sign: sign, sign, exponent and mantissa.
  MXORT_INLINE Vector DecodePair(Pairs pairs, int e) {
    const __m256i top = e ? pairs : _mm256_slli_epi16(pairs, 8);
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(top, 1), _mm256_set1_epi16(kByteFloat16)));
  }
  MXORT_INLINE Vector LoadScales(const uint8_t* p) { return LoadScales16(p); }
  MXORT_INLINE void Store(float* out, Vector x) { _mm512_storeu_ps(out, x); }
};

}  // namespace
}  // namespace mxort

#endif  // MXORT_KERNELS_AVX512_FLOATS_H_
