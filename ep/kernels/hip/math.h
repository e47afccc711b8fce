// Functions of one float that the instruction set has no instruction for, to about 2 units of the last place. The
// polynomials are Chebyshev fits (mpmath's chebyfit) of the interval that stands beside them.
#ifndef MXORT_KERNELS_HIP_MATH_H_
#define MXORT_KERNELS_HIP_MATH_H_

#include "kernels/hip/prelude.h"

namespace mxort::hip {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147182f, kLn2Low = -1.90465421e-9f;

MXORT_DEVICE float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MXORT_DEVICE float AbsOf(float x) { return __builtin_fabsf(x); }
MXORT_DEVICE bool IsNaN(float x) { return x != x; }
MXORT_DEVICE float CopySign(float size, float sign) { return __builtin_copysignf(size, sign); }

template <int kTerms>
MXORT_DEVICE float Polynomial(const float (&highest_first)[kTerms], float x) {
  float y = highest_first[0];
  Unroll<1, kTerms>([&](auto i) __attribute__((always_inline)) { y = Fma(y, x, highest_first[i.value]); });
  return y;
}

// By the ISA's definition v_div_scale_f32 scales a denominator from 2^126 on out of range where the quotient is
// subnormal, as 1 / 2^127 is; whether the hardware does too is unverified.
MXORT_DEVICE float Divide(float x, float y) {
  const float scale = AbsOf(y) >= 8.50705917e37f ? 5.9604645e-8f : 1.0f;
  return x / (y * scale) * scale;
}

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2. The instruction is given r alone, whose rounding then costs nothing.
MXORT_DEVICE float Exp(float x) {
  const float bounded = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;  // exp is 0 and infinity there; NaN stays
  const float n = __builtin_rintf(bounded * kLog2E);
  const float r = Fma(-n, kLn2Low, Fma(-n, kLn2, bounded));
  return __builtin_amdgcn_ldexpf(__builtin_amdgcn_exp2f(r * kLog2E), static_cast<i32>(n));
}

// v_log_f32 is log2 and takes subnormal numbers for zero.
MXORT_DEVICE float Log(float x) {
  const bool small = AbsOf(x) < 1.17549435e-38f;
  const float y = __builtin_amdgcn_logf(small ? x * 4294967296.0f : x) - (small ? 32.0f : 0.0f);
  return AbsOf(y) == kInfinity ? y : Fma(y, kLn2, y * kLn2Low);
}

// exp(x) - 1. The difference has u's error; (u - 1) / log(u) is right for the number that u is the exponential of.
MXORT_DEVICE float ExpMinus1(float x) {
  const float u = Exp(x);
  return u == 1.0f ? x : u < 0.001f || u == kInfinity ? u - 1.0f : (u - 1.0f) * (x / Log(u));
}

MXORT_DEVICE float Sigmoid(float x) { return Divide(1.0f, 1.0f + Exp(-x)); }

MXORT_DEVICE float Tanh(float x) {
  const float a = AbsOf(x);
  if (a < 0.55f) {  // where 1 - exp(-2 a) would cancel
    return x *
           Polynomial({-0.006233633488f, 0.02103821481f, -0.05384231925f, 0.1333245654f, -0.333333108f, 1.0f}, x * x);
  }
  const float e = Exp(-2.0f * a);
  return CopySign((1.0f - e) / (1.0f + e), x);
}

// |x| <= 1: x P(x^2). Beyond: 1 - exp(-x^2) Q(1 / (x + 2)), which is 1 from 4 on.
MXORT_DEVICE float Erf(float x) {
  const float a = AbsOf(x);
  if (a <= 1.0f) {
    return x * Polynomial({7.875875063e-5f, -0.0008016864287f, 0.005189087423f, -0.02685421201f, 0.1128359472f,
                           -0.3761262667f, 1.128379166f},
                          x * x);
  }
  if (IsNaN(x)) return x;
  const float bounded = a > 4.0f ? 4.0f : a, t = 1.0f / (bounded + 2.0f);
  const float q = Polynomial(
      {15.4099034f, -30.3909435f, 18.1987885f, -1.72886628f, 2.79959441f, 1.03629572f, 0.570017286f, -0.000160542628f},
      t);
  return CopySign(1.0f - Exp(-bounded * bounded) * q, x);
}

// log(1 + exp(x)).
MXORT_DEVICE float Softplus(float x) {
  const float e = Exp(-AbsOf(x));
  // The sum rounds e to u - 1: log(1 + e) / e and log(u) / (u - 1) are equal to the last place.
  const float u = 1.0f + e, log1p = u == 1.0f ? e : Log(u) * (e / (u - 1.0f));
  return (x > 0 ? x : IsNaN(x) ? x : 0.0f) + log1p;
}

// To the nearest whole number, of |x| < 2^51: the sum has no bits to the right of the point.
MXORT_DEVICE double Rounded(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }

// Sine where `quarter` is 0, cosine where it is 1. The multiple of pi / 2 is taken away in double precision: right to
// the last place up to 2^28 or so, beyond which a float's own spacing is larger than a turn.
MXORT_DEVICE float SinCos(float x, i32 quarter) {
  const double turns = static_cast<double>(x) * 0.63661977236758134308;
  const double n = Rounded(turns);
  const float r = static_cast<float>((turns - n) * 1.57079632679489661923), s = r * r;
  const i32 quadrant = static_cast<i32>(n) + quarter;
  const float sine = r * Polynomial({-0.0001950390425f, 0.008332035786f, -0.1666665067f, 0.9999999969f}, s);
  const float cosine = Polynomial({2.437983125e-5f, -0.0013886618f, 0.04166661669f, -0.4999999961f, 1.0f}, s);
  const float y = quadrant & 1 ? cosine : sine;
  if (AbsOf(x) == kInfinity) return __builtin_nanf("");
  return quadrant & 2 ? -y : y;
}

// log2 of a finite number above zero, in double: a power multiplies its error.
MXORT_DEVICE double Log2(float x) {
  const bool small = x < 1.17549435e-38f;
  const float normal = small ? x * 4294967296.0f : x;
  const u32 bits = __builtin_bit_cast(u32, normal);
  // m in [sqrt(1/2), sqrt(2)): the mantissa's bits, counted from those of sqrt(1/2).
  const u32 from = 0x3F3504F3;
  const i32 e = static_cast<i32>(bits - from) >> 23;
  const double m = static_cast<double>(__builtin_bit_cast(float, bits - (static_cast<u32>(e) << 23)));
  double inverse = static_cast<double>(__builtin_amdgcn_rcpf(static_cast<float>(m + 1.0)));
  inverse = inverse * __builtin_fma(-(m + 1.0), inverse, 2.0);  // Newton: 2^-23 becomes 2^-46
  const double s = (m - 1.0) * inverse, q = s * s;
  double sum = 1.0 / 13;
  sum = __builtin_fma(sum, q, 1.0 / 11);
  sum = __builtin_fma(sum, q, 1.0 / 9);
  sum = __builtin_fma(sum, q, 1.0 / 7);
  sum = __builtin_fma(sum, q, 1.0 / 5);
  sum = __builtin_fma(sum, q, 1.0 / 3);
  sum = __builtin_fma(sum, q, 1.0);
  return __builtin_fma(s * sum, 2.88539008177792681472, static_cast<double>(e - (small ? 32 : 0)));
}

// As C's pow.
MXORT_DEVICE float Pow(float x, float y) {
  if (y == 0.0f || x == 1.0f) return 1.0f;
  if (IsNaN(x) || IsNaN(y)) return x + y;
  const float size = AbsOf(x), floor = __builtin_floorf(y);
  const bool whole = floor == y;  // infinite exponents are even
  const bool odd = whole && __builtin_floorf(y * 0.5f) != y * 0.5f && AbsOf(y) < 16777216.0f;
  const float sign = odd ? CopySign(1.0f, x) : 1.0f;
  if (size == 1.0f && AbsOf(y) == kInfinity) return 1.0f;
  if (size == 0.0f || size == kInfinity || AbsOf(y) == kInfinity) {
    const bool grows = AbsOf(y) == kInfinity ? (size > 1.0f) == (y > 0) : (size != 0.0f) == (y > 0);
    return sign * (grows ? kInfinity : 0.0f);
  }
  if (x < 0.0f && !whole) return __builtin_nanf("");
  double power = static_cast<double>(y) * Log2(size);
  power = power < -200.0 ? -200.0 : power > 200.0 ? 200.0 : power;
  const double n = Rounded(power);
  return sign * __builtin_amdgcn_ldexpf(__builtin_amdgcn_exp2f(static_cast<float>(power - n)), static_cast<i32>(n));
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_MATH_H_
