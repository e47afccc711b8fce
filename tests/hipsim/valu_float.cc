// Vector float operations: f32, f16, f64, packed f32 / f16 / 16-bit integers, comparisons and classes.
// Transcendentals are correctly rounded here, where hardware has 1 ulp; kernels must not depend on either.
#include <algorithm>

#include "lanes.h"
#include "opcodes.h"

namespace hipsim {
namespace {

bool nan(float a) { return a != a; }
float quiet(float a) { return f32(bits(a) | 0x400000); }
bool signalling(float a) { return nan(a) && !(bits(a) & 0x400000); }
// IEEE-754 2008 minNum/maxNum with -0 < +0: a quiet NaN gives the other operand, and so does a signalling one unless
// the wave is in IEEE mode, where it is quieted and wins.
float min2(float a, float b, bool ieee) {
  if (ieee && signalling(a)) return quiet(a);
  if (ieee && signalling(b)) return quiet(b);
  if (nan(a)) return nan(b) ? quiet(a) : b;
  if (nan(b)) return a;
  if (a == b) return f32(bits(a) | bits(b));
  return a < b ? a : b;
}
float max2(float a, float b, bool ieee) {
  if (nan(a) || nan(b)) return min2(a, b, ieee);
  if (a == b) return f32(bits(a) & bits(b));
  return a > b ? a : b;
}
float min3(float a, float b, float c, bool ieee) { return min2(min2(a, b, ieee), c, ieee); }
float max3(float a, float b, float c, bool ieee) { return max2(max2(a, b, ieee), c, ieee); }
float med3(float a, float b, float c, bool ieee) {
  if (nan(a) || nan(b) || nan(c)) return min3(a, b, c, ieee);
  return max2(min2(a, b, ieee), min2(max2(a, b, ieee), c, ieee), ieee);
}
// IEEE-754 2019 minimum/maximum: NaN wins.
float minimum(float a, float b) { return nan(a) ? quiet(a) : nan(b) ? quiet(b) : min2(a, b, true); }
float maximum(float a, float b) { return nan(a) ? quiet(a) : nan(b) ? quiet(b) : max2(a, b, true); }

float hf(u32 a) { return half_to_float(static_cast<u16>(a)); }
u32 fh(float a) { return float_to_half(a); }
bool signalling16(u32 a) { return (a & 0x7E00) == 0x7C00 && (a & 0x1FF); }
template <class F>
u32 half_min_max(u32 a, u32 b, bool ieee, F f) {  // the conversion to float would lose what is signalling
  if (ieee && signalling16(a)) return (a & 0xFFFF) | 0x200;
  if (ieee && signalling16(b)) return (b & 0xFFFF) | 0x200;
  return fh(f(hf(a), hf(b), false));
}
bool signalling(double a) { return a != a && !(bits(a) >> 51 & 1); }
double quiet(double a) { return f64(bits(a) | u64{1} << 51); }
template <class F>
double double_min_max(double a, double b, bool ieee, F f) {
  if (ieee && signalling(a)) return quiet(a);
  if (ieee && signalling(b)) return quiet(b);
  if (a != a) return b != b ? quiet(a) : b;
  return b != b ? a : f(a, b);
}
u32 half_fma(u32 a, u32 b, u32 c) {  // exact in double, one rounding
  return double_to_half(static_cast<double>(hf(a)) * hf(b) + hf(c));
}

i32 ldexp_amount(u32 b) { return std::clamp(static_cast<i32>(b), -2000, 2000); }
u32 frexp_exp(float a) {
  if (nan(a) || std::isinf(a) || a == 0) return 0;
  int e;
  std::frexp(a, &e);
  return static_cast<u32>(e);
}
float frexp_mant(float a) {
  if (nan(a) || std::isinf(a)) return a;
  int e;
  return std::frexp(a, &e);
}
int exponent(float a) { return static_cast<int>(bits(a) >> 23 & 255); }

// v_div_scale_f32 d, vcc, s0, s1 (denominator), s2 (numerator): ISA pseudocode, single precision, but for one sign: of
// a denominator whose reciprocal and quotient are both denormal it says 2^64, which would make it infinite; only 2^-64
// gives the quotient that v_div_fmas then divides by 2^64.
void div_scale(Wave& w, const Inst& i) {
  u32 t[3][kLanes], r[kLanes];
  Poison p;
  const u32 *a = read32(w, i, 2, 0, t[0], p), *b = read32(w, i, 3, 1, t[1], p), *c = read32(w, i, 4, 2, t[2], p);
  u64 vcc = 0;
  for (int l = 0; l < kLanes; l++) {
    float s0 = f32(a[l]), s1 = f32(b[l]), s2 = f32(c[l]), d = s0;
    bool flag = false;
    auto tiny = [](double x) { return x != 0 && std::fabs(x) < 0x1p-126; };  // denormal as a float
    bool tiny_reciprocal = tiny(1.0 / static_cast<double>(s1)), tiny_quotient = tiny(static_cast<double>(s2) / s1);
    int shift = 0;
    if (s2 == 0 || s1 == 0)
      d = f32(0x7FC00000);
    else if (exponent(s2) - exponent(s1) >= 96)
      flag = true, shift = bits(s0) == bits(s1) ? 64 : 0;
    else if (exponent(s1) == 0)
      shift = 64;
    else if (tiny_reciprocal && tiny_quotient)
      flag = true, shift = bits(s0) == bits(s1) ? -64 : 0;
    else if (tiny_reciprocal)
      shift = -64;
    else if (tiny_quotient)
      flag = true, shift = bits(s0) == bits(s2) ? 64 : 0;
    else if (exponent(s2) <= 23)
      shift = 64;
    if (shift) d = std::ldexp(s0, shift);
    r[l] = bits(d);
    vcc |= static_cast<u64>(flag) << l;
  }
  write32(w, i, r, p, w.exec());
  write_mask(w, i.op[1].reg, vcc & w.exec(), p.any() & w.exec());
}
void div_fmas(Wave& w, const Inst& i) {
  u64 unknown = w.sp64(kVcc) & w.exec(), vcc = w.get_s(kVcc) | static_cast<u64>(w.get_s(kVcc + 1)) << 32;
  if (unknown) fail("v_div_fmas on VCC that nobody wrote");
  u32 t[3][kLanes], r[kLanes];
  Poison p;
  const u32 *a = read32(w, i, 1, 0, t[0], p), *b = read32(w, i, 2, 1, t[1], p), *c = read32(w, i, 3, 2, t[2], p);
  for (int l = 0; l < kLanes; l++) {
    float f = std::fma(f32(a[l]), f32(b[l]), f32(c[l]));
    r[l] = bits(vcc >> l & 1 ? std::ldexp(f, exponent(f32(c[l])) > 127 ? 64 : -64) : f);
  }
  write32(w, i, r, p, w.exec());
}
float div_fixup(float q, float d, float n) {  // s0 quotient, s1 denominator, s2 numerator
  bool sign = std::signbit(d) != std::signbit(n);
  float inf = f32(0x7F800000 | (sign ? 0x80000000 : 0)), zero = f32(sign ? 0x80000000 : 0);
  if (nan(n)) return quiet(n);
  if (nan(d)) return quiet(d);
  if ((d == 0 && n == 0) || (std::isinf(d) && std::isinf(n))) return f32(0xFFC00000);
  if (d == 0 || std::isinf(n)) return inf;
  if (std::isinf(d) || n == 0) return zero;
  return std::copysign(q, sign ? -1.0f : 1.0f);
}

bool classify(float a, u32 mask) {
  int k;
  bool neg = std::signbit(a);
  if (nan(a))
    k = bits(a) & 0x400000 ? 1 : 0;
  else if (std::isinf(a))
    k = neg ? 2 : 9;
  else if (a == 0)
    k = neg ? 5 : 6;
  else if (exponent(a) == 0)
    k = neg ? 4 : 7;
  else
    k = neg ? 3 : 8;
  return mask >> k & 1;
}

// ---- packed ---------------------------------------------------------------------------------------------------------
// v_pk_*_f32: op_sel / op_sel_hi choose the register of the pair for the low / high result. A constant has no defined
// upper register, so using it is refused (the compiler clears op_sel_hi there).
template <int N, class F>
void packed_f32(Wave& w, const Inst& i, F f, bool move = false) {
  u32 r[2][kLanes], t[3][kLanes];
  Poison p[2];
  for (int half = 0; half < 2; half++) {
    const u32* s[3] = {nullptr, nullptr, nullptr};
    for (int k = 0; k < N; k++) {
      // v_pk_mov_b32: low from src0 by op_sel[0], high from src1 by op_sel[1]
      int pick = (move ? i.op_sel >> k : (half ? i.op_sel_hi : i.op_sel) >> k) & 1;
      Operand o = i.op[1 + k];
      if (o.kind == Kind::kConst && pick) fail("upper register of a constant in a packed operation");
      if (o.kind != Kind::kConst) o.reg = static_cast<u16>(o.reg + pick);
      o.neg = (half ? i.neg_hi : i.neg_lo) >> k & 1;
      Poison mine;
      s[k] = read32_slow(w, i, o, 3, t[k], mine);
      if (!move || k == half) p[half] |= mine;
    }
    for (int l = 0; l < kLanes; l++) {
      if (move)
        r[half][l] = s[half][l];
      else if constexpr (N == 2)
        r[half][l] = bits(f(f32(s[0][l]), f32(s[1][l])));
      else if constexpr (N == 3)
        r[half][l] = bits(f(f32(s[0][l]), f32(s[1][l]), f32(s[2][l])));
    }
  }
  for (int half = 0; half < 2; half++) {
    Inst d = {};
    d.op[0] = i.op[0], d.op[0].reg = static_cast<u16>(i.op[0].reg + half), d.entry = i.entry;
    write32(w, d, r[half], p[half], w.exec());
  }
}

// v_pk_* on 16-bit halves: op_sel / op_sel_hi choose the half of each source for the low / high result.
template <int N, class F>
void packed_16(Wave& w, const Inst& i, F f, bool is_float) {
  u32 r[kLanes] = {}, t[3][kLanes];
  Poison p;
  const u32* s[3] = {nullptr, nullptr, nullptr};
  for (int k = 0; k < N; k++) {
    Operand o = i.op[1 + k];
    o.neg = o.abs = false;
    s[k] = read32_slow(w, i, o, 3, t[k], p);
  }
  for (int half = 0; half < 2; half++) {
    u32 x[3][kLanes] = {};
    for (int k = 0; k < N; k++) {
      u32 pick = ((half ? i.op_sel_hi : i.op_sel) >> k & 1) * 16;
      if (is_float && pick && i.op[1 + k].kind == Kind::kConst) fail("upper half of a constant in a packed operation");
      u32 flip = is_float && ((half ? i.neg_hi : i.neg_lo) >> k & 1) ? 0x8000 : 0;
      for (int l = 0; l < kLanes; l++) x[k][l] = (s[k][l] >> pick & 0xFFFF) ^ flip;
    }
    for (int l = 0; l < kLanes; l++) {
      u32 v;
      if constexpr (N == 2)
        v = f(x[0][l], x[1][l]);
      else
        v = f(x[0][l], x[1][l], x[2][l]);
      r[l] |= (v & 0xFFFF) << (16 * half);
    }
  }
  if (i.clamp) fail("clamp of packed results is not modelled");
  write32(w, i, r, p, w.exec());
}

// v_fma_mix*: op_sel_hi[k] = source k is a half, op_sel[k] = which one; neg_hi is abs, neg_lo is neg.
void fma_mix(Wave& w, const Inst& i, int half_result) {  // -1: f32
  u32 t[kLanes], r[kLanes];
  float x[3][kLanes];
  Poison p;
  for (int k = 0; k < 3; k++) {
    Operand o = i.op[1 + k];
    o.neg = o.abs = false;
    const u32* s = read32_slow(w, i, o, 3, t, p);
    for (int l = 0; l < kLanes; l++) {
      float v = i.op_sel_hi >> k & 1 ? hf(s[l] >> (i.op_sel >> k & 1 ? 16 : 0)) : f32(s[l]);
      if (i.neg_hi >> k & 1) v = std::fabs(v);
      x[k][l] = i.neg_lo >> k & 1 ? -v : v;
    }
  }
  for (int l = 0; l < kLanes; l++) r[l] = bits(std::fma(x[0][l], x[1][l], x[2][l]));
  if (half_result < 0) return write32(w, i, r, p, w.exec());
  Inst d = i;  // as an SDWA destination that preserves the other half
  d.sdwa = true, d.dst_sel = static_cast<u8>(4 + half_result), d.dst_unused = 2;
  for (int l = 0; l < kLanes; l++) r[l] = fh(f32(r[l]));
  write32(w, d, r, p, w.exec());
}

template <class F>
void compare_f64(Wave& w, const Inst& i, F f) {
  u64 a[kLanes], b[kLanes], mask = 0;
  Unknown64 p;
  read64(w, i, i.op[1], a, p);
  read64(w, i, i.op[2], b, p);
  for (int l = 0; l < kLanes; l++) mask |= static_cast<u64>(f(f64(a[l]), f64(b[l]))) << l;
  write_mask(w, i.op[0].reg, mask & w.exec(), (p.low | p.high) & w.exec());
}

#define ENTRY(name, ...) {name, [](Wave& w, const Inst& i) { __VA_ARGS__; }}
#define ENTRY_H(name, ...) {name, [](Wave& w, const Inst& i) { __VA_ARGS__; }, Lit::kF16}
#define ENTRY_D(name, ...) {name, [](Wave& w, const Inst& i) { __VA_ARGS__; }, Lit::kF64}
#define F1(name, expr) ENTRY(name, mapf<1>(w, i, [](float a) -> float { return expr; }))
#define F2(name, expr) ENTRY(name, mapf<2>(w, i, [](float a, float b) -> float { return expr; }))
#define F3(name, expr) ENTRY(name, mapf<3>(w, i, [](float a, float b, float c) -> float { return expr; }))
#define H1(name, expr)                 \
  ENTRY_H(name, map32<1>(              \
                    w, i,              \
                    [](u32 x) -> u32 { \
                      float a = hf(x); \
                      return expr;     \
                    },                 \
                    Spread::kAll, 1, true))
#define H2(name, expr)                            \
  ENTRY_H(name, map32<2>(                         \
                    w, i,                         \
                    [](u32 x, u32 y) -> u32 {     \
                      float a = hf(x), b = hf(y); \
                      return expr;                \
                    },                            \
                    Spread::kAll, 1, true))
#define D2(name, expr)                                      \
  ENTRY_D(name, map64<2>(w, i, 3, [](u64 x, u64 y) -> u64 { \
            double a = f64(x), b = f64(y);                  \
            return bits(expr);                              \
          }))
#define P2(name, expr) ENTRY(name, packed_f32<2>(w, i, [](float a, float b) -> float { return expr; }))
#define PH2(name, expr)                           \
  ENTRY_H(name, packed_16<2>(                     \
                    w, i,                         \
                    [](u32 x, u32 y) -> u32 {     \
                      float a = hf(x), b = hf(y); \
                      return fh(expr);            \
                    },                            \
                    true))
#define PI2(name, expr) \
  ENTRY(name, packed_16<2>(w, i, [](u32 a, u32 b) -> u32 { return static_cast<u32>(expr); }, false))
// The same with the wave's mode as a last argument.
#define M2(name, f) ENTRY(name, bool ieee = w.ieee(); mapf<2>(w, i, [ieee](float a, float b) { return f(a, b, ieee); }))
#define M3(name, f) \
  ENTRY(name, bool ieee = w.ieee(); mapf<3>(w, i, [ieee](float a, float b, float c) { return f(a, b, c, ieee); }))
#define MH2(name, f)                  \
  ENTRY_H(name, bool ieee = w.ieee(); \
          map32<2>(w, i, [ieee](u32 a, u32 b) -> u32 { return half_min_max(a, b, ieee, f); }, Spread::kAll, 1, true))
#define MPH2(name, f)                 \
  ENTRY_H(name, bool ieee = w.ieee(); \
          packed_16<2>(w, i, [ieee](u32 a, u32 b) -> u32 { return half_min_max(a, b, ieee, f); }, true))
#define MD2(name, f)                                                                                       \
  ENTRY_D(name, bool ieee = w.ieee(); map64<2>(w, i, 3, [ieee](u64 a, u64 b) {                             \
            return bits(double_min_max(f64(a), f64(b), ieee, [](double x, double y) { return f(x, y); })); \
          }))
#define CF(name, expr)                                                      \
  ENTRY("v_cmp_" name "_f32", compare32(w, i,                               \
                                        [](u32 x, u32 y) {                  \
                                          float a = f32(x), b = f32(y);     \
                                          return expr;                      \
                                        })),                                \
      ENTRY("v_cmpx_" name "_f32", compare32(                               \
                                       w, i,                                \
                                       [](u32 x, u32 y) {                   \
                                         float a = f32(x), b = f32(y);      \
                                         return expr;                       \
                                       },                                   \
                                       true)),                              \
      ENTRY_H("v_cmp_" name "_f16", compare32(w, i,                         \
                                              [](u32 x, u32 y) {            \
                                                float a = hf(x), b = hf(y); \
                                                return expr;                \
                                              })),                          \
      ENTRY_D("v_cmp_" name "_f64", compare_f64(w, i, [](double a, double b) { return expr; }))
#define SIGN16(x) static_cast<int16_t>(x)

const OpEntry kTable[] = {
    F2("v_add_f32", a + b),
    F2("v_sub_f32", a - b),
    F2("v_subrev_f32", b - a),
    F2("v_mul_f32", a* b),
    F2("v_mul_legacy_f32", a == 0 || b == 0 ? 0.0f : a * b),
    M2("v_min_f32", min2),
    M2("v_max_f32", max2),
    F3("v_fma_f32", std::fma(a, b, c)),
    F3("v_mad_f32", a* b + c),
    F3("v_fmac_f32", std::fma(a, b, c)),
    F3("v_fmamk_f32", std::fma(a, b, c)),  // source, constant, addend
    F3("v_fmaak_f32", std::fma(a, b, c)),
    M3("v_min3_f32", min3),
    M3("v_max3_f32", max3),
    M3("v_med3_f32", med3),
    F3("v_minimum3_f32", minimum(minimum(a, b), c)),
    F3("v_maximum3_f32", maximum(maximum(a, b), c)),
    F1("v_rcp_f32", static_cast<float>(1.0 / static_cast<double>(a))),
    F1("v_rcp_iflag_f32", static_cast<float>(1.0 / static_cast<double>(a))),
    F1("v_rsq_f32", static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)))),
    F1("v_sqrt_f32", std::sqrt(a)),
    F1("v_exp_f32", static_cast<float>(std::exp2(static_cast<double>(a)))),
    F1("v_log_f32", static_cast<float>(std::log2(static_cast<double>(a)))),
    F1("v_sin_f32", static_cast<float>(std::sin(2 * M_PI * static_cast<double>(a)))),
    F1("v_cos_f32", static_cast<float>(std::cos(2 * M_PI * static_cast<double>(a)))),
    F1("v_floor_f32", std::floor(a)),
    F1("v_ceil_f32", std::ceil(a)),
    F1("v_trunc_f32", std::trunc(a)),
    F1("v_rndne_f32", std::nearbyint(a)),
    F1("v_fract_f32", std::min(a - std::floor(a), 0x1.fffffep-1f)),
    ENTRY("v_ldexp_f32",
          map32<2>(
              w, i, [](u32 a, u32 b) { return bits(std::ldexp(f32(a), ldexp_amount(b))); }, Spread::kAll, 1, true)),
    ENTRY("v_frexp_exp_i32_f32", map32<1>(w, i, [](u32 a) { return frexp_exp(f32(a)); })),
    F1("v_frexp_mant_f32", frexp_mant(a)),
    ENTRY("v_div_scale_f32", div_scale(w, i)),
    ENTRY("v_div_fmas_f32", div_fmas(w, i)),
    F3("v_div_fixup_f32", div_fixup(a, b, c)),
    ENTRY("v_cmp_class_f32", compare32(w, i, [](u32 a, u32 b) { return classify(f32(a), b); })),
    ENTRY("v_cmpx_class_f32", compare32(
                                  w, i, [](u32 a, u32 b) { return classify(f32(a), b); }, true)),

    H2("v_add_f16", fh(a + b)),
    H2("v_sub_f16", fh(a - b)),
    H2("v_subrev_f16", fh(b - a)),
    H2("v_mul_f16", fh(a* b)),
    MH2("v_min_f16", min2),
    MH2("v_max_f16", max2),
    H1("v_rcp_f16", fh(1 / a)),
    H1("v_sqrt_f16", fh(std::sqrt(a))),
    H1("v_floor_f16", fh(std::floor(a))),
    H1("v_ceil_f16", fh(std::ceil(a))),
    H1("v_trunc_f16", fh(std::trunc(a))),
    H1("v_rndne_f16", fh(std::nearbyint(a))),
    ENTRY_H("v_fma_f16", map32<3>(w, i, half_fma, Spread::kAll, 1, true)),
    ENTRY_H("v_fmac_f16", map32<3>(w, i, half_fma, Spread::kAll, 1, true)),
    ENTRY_H("v_ldexp_f16",
            map32<2>(
                w, i, [](u32 a, u32 b) { return fh(std::ldexp(hf(a), SIGN16(b))); }, Spread::kAll, 1, true)),

    D2("v_add_f64", a + b),
    D2("v_mul_f64", a* b),
    MD2("v_min_f64", std::fmin),
    MD2("v_max_f64", std::fmax),
    ENTRY_D("v_fma_f64", map64<3>(w, i, 7, [](u64 a, u64 b, u64 c) { return bits(std::fma(f64(a), f64(b), f64(c))); })),
    ENTRY_D("v_fmac_f64",
            map64<3>(w, i, 7, [](u64 a, u64 b, u64 c) { return bits(std::fma(f64(a), f64(b), f64(c))); })),
    ENTRY_D(
        "v_ldexp_f64",
        map64<2>(w, i, 1, [](u64 a, u64 b) { return bits(std::ldexp(f64(a), ldexp_amount(static_cast<u32>(b)))); })),

    P2("v_pk_add_f32", a + b),
    P2("v_pk_mul_f32", a* b),
    ENTRY("v_pk_fma_f32", packed_f32<3>(w, i, [](float a, float b, float c) { return std::fma(a, b, c); })),
    ENTRY("v_pk_mov_b32", packed_f32<2>(
                              w, i, [](float a, float) { return a; }, true)),
    PH2("v_pk_add_f16", a + b),
    PH2("v_pk_mul_f16", a* b),
    MPH2("v_pk_min_f16", min2),
    MPH2("v_pk_max_f16", max2),
    ENTRY_H("v_pk_fma_f16", packed_16<3>(w, i, half_fma, true)),
    PI2("v_pk_add_u16", a + b),
    PI2("v_pk_sub_i16", a - b),
    PI2("v_pk_add_i16", a + b),
    PI2("v_pk_sub_u16", a - b),
    PI2("v_pk_mul_lo_u16", a* b),
    PI2("v_pk_lshlrev_b16", b << (a & 15)),
    PI2("v_pk_lshrrev_b16", b >> (a & 15)),
    PI2("v_pk_ashrrev_i16", SIGN16(b) >> (a & 15)),
    PI2("v_pk_min_u16", std::min(a, b)),
    PI2("v_pk_max_u16", std::max(a, b)),
    PI2("v_pk_min_i16", std::min(SIGN16(a), SIGN16(b))),
    PI2("v_pk_max_i16", std::max(SIGN16(a), SIGN16(b))),
    ENTRY("v_pk_mad_u16", packed_16<3>(
                              w, i, [](u32 a, u32 b, u32 c) { return a * b + c; }, false)),
    ENTRY("v_pk_mad_i16", packed_16<3>(
                              w, i, [](u32 a, u32 b, u32 c) { return a * b + c; }, false)),
    ENTRY("v_fma_mix_f32", fma_mix(w, i, -1)),
    ENTRY("v_fma_mixlo_f16", fma_mix(w, i, 0)),
    ENTRY("v_fma_mixhi_f16", fma_mix(w, i, 1)),

    CF("lt", a < b),
    CF("eq", a == b),
    CF("le", a <= b),
    CF("gt", a > b),
    CF("lg", a<b || a> b),
    CF("ge", a >= b),
    CF("o", a == a && b == b),
    CF("u", a != a || b != b),
    CF("nge", !(a >= b)),
    CF("nlg", !(a < b || a > b)),
    CF("ngt", !(a > b)),
    CF("nle", !(a <= b)),
    CF("neq", !(a == b)),
    CF("nlt", !(a < b)),
};

}  // namespace

OpTable valu_float_ops() { return {kTable, sizeof kTable / sizeof *kTable}; }

}  // namespace hipsim
