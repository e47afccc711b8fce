// Element formats of the MX specification as the instructions see them. Written from the OCP documents, apart from
// the product's own tables, so that a mistake there does not repeat here.
#pragma once

#include <cmath>

#include "sim.h"

namespace hipsim {

struct MiniFormat {
  int exponent_bits, mantissa_bits, bias;
  enum Special { kNone, kNanTop, kIeee, kFnuz } special;  // kNanTop: only s.1111.111 is NaN (E4M3)
  int bits() const { return 1 + exponent_bits + mantissa_bits; }
};

// Index: the cbsz / blgp code of the f8f6f4 instructions.
constexpr MiniFormat kFormats[5] = {
    {4, 3, 7, MiniFormat::kNanTop}, {5, 2, 15, MiniFormat::kIeee}, {2, 3, 1, MiniFormat::kNone},
    {3, 2, 3, MiniFormat::kNone},   {2, 1, 1, MiniFormat::kNone},
};
enum { kFp8 = 0, kBf8 = 1, kFp6 = 2, kBf6 = 3, kFp4 = 4 };
constexpr MiniFormat kFp8Fnuz = {4, 3, 8, MiniFormat::kFnuz}, kBf8Fnuz = {5, 2, 16, MiniFormat::kFnuz};

inline float decode_mini(const MiniFormat& f, u32 code) {
  int man = static_cast<int>(code & ((1u << f.mantissa_bits) - 1));
  int exp = static_cast<int>(code >> f.mantissa_bits & ((1u << f.exponent_bits) - 1));
  bool negative = code >> (f.bits() - 1) & 1;
  int top = (1 << f.exponent_bits) - 1;
  if (f.special == MiniFormat::kFnuz && negative && exp == 0 && man == 0) return NAN;
  if (f.special == MiniFormat::kNanTop && exp == top && man == (1 << f.mantissa_bits) - 1) return NAN;
  if (f.special == MiniFormat::kIeee && exp == top) return man ? NAN : negative ? -INFINITY : INFINITY;
  double m = exp ? man + (1 << f.mantissa_bits) : man;
  double v = std::ldexp(m, (exp ? exp : 1) - f.bias - f.mantissa_bits);
  return static_cast<float>(negative ? -v : v);
}

inline double largest_mini(const MiniFormat& f) {
  int top = (1 << f.exponent_bits) - 1;
  if (f.special == MiniFormat::kIeee) return std::ldexp(2.0 - std::ldexp(1.0, -f.mantissa_bits), top - 1 - f.bias);
  if (f.special == MiniFormat::kNanTop) return std::ldexp(2.0 - std::ldexp(2.0, -f.mantissa_bits), top - f.bias);
  return std::ldexp(2.0 - std::ldexp(1.0, -f.mantissa_bits), top - f.bias);
}

// Nearest, ties to even. Beyond the largest number: saturate, or (formats with specials) NaN or infinity.
inline u32 encode_mini(const MiniFormat& f, double x, bool saturate) {
  u32 sign = std::signbit(x) ? 1u << (f.bits() - 1) : 0;
  u32 largest = f.special == MiniFormat::kNanTop ? (1u << (f.bits() - 1)) - 2
                : f.special == MiniFormat::kIeee ? (((1u << f.exponent_bits) - 1) << f.mantissa_bits) - 1
                                                 : (1u << (f.bits() - 1)) - 1;
  u32 nan = f.special == MiniFormat::kFnuz ? 1u << (f.bits() - 1) : sign | ((1u << (f.bits() - 1)) - 1);
  double a = std::fabs(x);
  if (a != a) return f.special == MiniFormat::kNone ? largest : nan;
  u64 b;
  memcpy(&b, &a, 8);
  int exponent = static_cast<int>(b >> 52) - 1023;  // doubles below 2^-1022 count as zero
  int e = exponent < 1 - f.bias ? 1 - f.bias : exponent;
  u32 code = largest + 1;
  if (exponent <= f.bias + 40) {
    u64 m = exponent == -1023 ? 0 : (b & 0xFFFFFFFFFFFFFull) | 1ull << 52;
    int shift = 52 - f.mantissa_bits + (e - exponent);
    u64 q = shift > 54 ? 0 : (m + (1ull << (shift - 1)) - 1 + (m >> shift & 1)) >> shift;
    u64 c = (static_cast<u64>(e + f.bias - 1) << f.mantissa_bits) + q;
    if (c <= largest) code = static_cast<u32>(c);
  }
  if (code > largest) {
    if (saturate || f.special == MiniFormat::kNone)
      code = largest;
    else if (f.special == MiniFormat::kIeee)
      code = largest + 1;
    else
      return nan;
  }
  if (f.special == MiniFormat::kFnuz && code == 0) return 0;
  return sign | code;
}

// 2^(byte - 127), the value of an exponent field or E8M0 byte; 255 is infinity here, callers decide what it means.
inline double power_of_byte(u32 byte) {
  u64 b = static_cast<u64>(byte - 127 + 1023) << 52;
  double d;
  memcpy(&d, &b, 8);
  return d;
}
inline double reciprocal_power(u32 byte) {
  u64 b = static_cast<u64>(127 - byte + 1023) << 52;
  double d;
  memcpy(&d, &b, 8);
  return d;
}

// decode_mini of every code; `which` 5 and 6 are the FNUZ formats.
inline const float* mini_table(int which) {
  struct Tables {
    float x[7][256];
    Tables() {
      for (int w = 0; w < 7; w++) {
        const MiniFormat& f = w < 5 ? kFormats[w] : w == 5 ? kFp8Fnuz : kBf8Fnuz;
        for (u32 c = 0; c < 256; c++) x[w][c] = decode_mini(f, c & ((1u << f.bits()) - 1));
      }
    }
  };
  static const Tables tables;
  return tables.x[which];
}

}  // namespace hipsim
