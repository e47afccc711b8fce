// Functions of floats that a compiler turns into vectors where they stand in a loop. Static and always inlined for the
// reason in mx_formats.h.
#ifndef MXORT_KERNELS_VECTOR_MATH_H_
#define MXORT_KERNELS_VECTOR_MATH_H_

#include "mx_formats.h"

namespace mxort {

// a b + c, in one instruction where there is one.
MXORT_INLINE float Fma(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) of x <= 0, relative error 2e-7; below -87 a number near 1e-38. x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by the
// polynomial of the Cephes library; 2^n by n added to the exponent. NaN stays NaN.
MXORT_INLINE float Exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shifted = Fma(x, 1.44269504f, 12582912.0f);  // 1.5 * 2^23: n in the low bits
  const float n = shifted - 12582912.0f;
  const float r = Fma(n, 2.12194440e-4f, Fma(n, -0.693359375f, x));
  float p = 1.9875691500e-4f;
  p = Fma(p, r, 1.3981999507e-3f);
  p = Fma(p, r, 8.3334519073e-3f);
  p = Fma(p, r, 4.1665795894e-2f);
  p = Fma(p, r, 1.6666665459e-1f);
  p = Fma(p, r, 5.0000001201e-1f);
  p = Fma(p, r * r, r) + 1.0f;
  return BitsFloat(FloatBits(p) + (FloatBits(shifted) << kFloatMantissaBits));
}

// erf(|x|) = 1 - ErfComplement(|x|), absolute error 1.5e-7 (Abramowitz and Stegun 7.1.26).
MXORT_INLINE float ErfComplement(float magnitude) {
  const float t = 1.0f / Fma(magnitude, 0.3275911f, 1.0f);
  float p = 1.061405429f;
  p = Fma(p, t, -1.453152027f);
  p = Fma(p, t, 1.421413741f);
  p = Fma(p, t, -0.284496736f);
  p = Fma(p, t, 0.254829592f);
  return p * t * Exp(-magnitude * magnitude);
}

// 1 / (1 + exp(-x)). By exp of a negative number, which does not overflow.
MXORT_INLINE float Sigmoid(float x) {
  const float e = Exp(-BitsFloat(FloatBits(x) & kFloatMagnitude));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

}  // namespace mxort

#endif  // MXORT_KERNELS_VECTOR_MATH_H_
