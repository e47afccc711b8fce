// Pieces that the AVX-512 kernel files share.
#ifndef MXORT_KERNELS_AVX512_H_
#define MXORT_KERNELS_AVX512_H_

#include <immintrin.h>

#include "mx_formats.h"

namespace mxort {

// 16 E8M0 bytes as floats, with 2^-127 and NaN right (DecodeScale).
MXORT_INLINE __m512 LoadScales16(const void* p) {
  const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  const __m512i bits = _mm512_max_epu32(_mm512_slli_epi32(byte, kFloatMantissaBits),
                                        _mm512_set1_epi32(static_cast<int>(kFloatTwoToMinus127)));
  const __mmask16 is_nan = _mm512_cmpeq_epi32_mask(byte, _mm512_set1_epi32(kScaleNaN));
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, is_nan, _mm512_set1_epi32(kFloatNaN)));
}

}  // namespace mxort

#endif  // MXORT_KERNELS_AVX512_H_
