// float16 and bfloat16 as bit patterns, to and from float. Static and always inlined for the reason in mx_formats.h.
#ifndef MXORT_KERNELS_FLOAT16_H_
#define MXORT_KERNELS_FLOAT16_H_

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels/kernel.h"
#include "mx_formats.h"

namespace mxort {

MXORT_INLINE float BFloat16ToFloat(uint16_t x) { return BitsFloat(static_cast<unsigned>(x) << 16); }

// Round to nearest even; a NaN keeps its sign and becomes quiet.
MXORT_INLINE uint16_t FloatToBFloat16(float x) {
  const unsigned bits = FloatBits(x);
  if ((bits & kFloatMagnitude) > kFloatExponent) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

MXORT_INLINE float Float16ToFloat(uint16_t x) {
  const unsigned sign = (x & 0x8000u) << 16, exponent = (x >> 10) & 31, mantissa = x & 0x3FFu;
  if (exponent == 31) return BitsFloat(sign | kFloatExponent | (mantissa << 13));
  if (exponent == 0) return BitsFloat(FloatBits(static_cast<float>(mantissa) * 0x1p-24f) | sign);
  return BitsFloat(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest even, overflow to infinity. Below 2^-14 the sum with 0.5 leaves the subnormal in the mantissa,
// rounded by the adder: 0.5 has an ulp of 2^-24, the spacing of float16's subnormals.
MXORT_INLINE uint16_t FloatToFloat16(float x) {
  const unsigned bits = FloatBits(x), magnitude = bits & kFloatMagnitude;
  const unsigned sign = (bits >> 16) & 0x8000u;
  if (magnitude > kFloatExponent) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00);  // >= 65536
  if (magnitude < 0x38800000u) {                                              // < 2^-14
    return static_cast<uint16_t>(sign | (FloatBits(BitsFloat(magnitude) + 0.5f) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xFFF + ((magnitude >> 13) & 1)) >> 13));
}

// n of them. F16C rounds and treats subnormals as the functions above do; a NaN may keep more of its bits.
MXORT_INLINE void Float16ToFloats(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
  }
#endif
  for (; i < n; ++i) out[i] = Float16ToFloat(x[i]);
}
MXORT_INLINE void FloatsToFloat16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
  }
#endif
  for (; i < n; ++i) out[i] = FloatToFloat16(x[i]);
}

MXORT_INLINE size_t DataTypeBytes(DataType type) { return type == DataType::kFloat ? 4 : 2; }

MXORT_INLINE float LoadAs(DataType type, const void* data, int64_t i) {
  if (type == DataType::kFloat) return static_cast<const float*>(data)[i];
  const uint16_t x = static_cast<const uint16_t*>(data)[i];
  return type == DataType::kFloat16 ? Float16ToFloat(x) : BFloat16ToFloat(x);
}

MXORT_INLINE void StoreAs(DataType type, void* data, int64_t i, float x) {
  if (type == DataType::kFloat) {
    static_cast<float*>(data)[i] = x;
  } else {
    static_cast<uint16_t*>(data)[i] = type == DataType::kFloat16 ? FloatToFloat16(x) : FloatToBFloat16(x);
  }
}

}  // namespace mxort

#endif  // MXORT_KERNELS_FLOAT16_H_
