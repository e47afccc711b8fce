// Conversions, including gfx950's v_cvt_scalef32_* family.
// Of the family's `scale` only the exponent counts: numbers are divided by 2^(e-127) on the way to a small format and
// multiplied on the way back. op_sel chooses the byte or half of a source ([1:0], [0]) or destination ([3:2], [3]);
// the rest of the destination register is kept. Stochastic rounding is not modelled.
#include <algorithm>

#include "lanes.h"
#include "minifloat.h"
#include "opcodes.h"

namespace hipsim {
namespace {

float hf(u32 a) { return half_to_float(static_cast<u16>(a)); }
u32 to_u32(double a) { return a != a || a <= 0 ? 0 : a >= 4294967295.0 ? ~0u : static_cast<u32>(a); }
u32 to_i32(double a) {
  if (a != a) return 0;
  if (a <= -2147483648.0) return 0x80000000;
  if (a >= 2147483647.0) return 0x7FFFFFFF;
  return static_cast<u32>(static_cast<i32>(a));
}
u16 half_rtz(float f) {  // towards zero
  u16 h = float_to_half(f);
  if (std::isinf(f) || f != f) return h;
  float back = half_to_float(h);
  return std::fabs(back) > std::fabs(f) ? static_cast<u16>(h - 1) : h;
}

// Source and result types beside the small formats.
enum Wide { kF32 = 0, kF16 = 1, kBf16 = 2 };
float from_wide(u32 pattern, int type) {
  return type == kF32 ? f32(pattern) : type == kF16 ? hf(pattern) : bf16_to_float(static_cast<u16>(pattern));
}
u32 to_wide(double v, int type) {
  if (type == kF32) return bits(static_cast<float>(v));
  if (type == kF16) return double_to_half(v);
  return float_to_bf16(static_cast<float>(v));  // small formats have few bits: the float is exact or subnormal
}

// entry->arg: format | wide type << 4
int small_of(const Inst& i) { return static_cast<int>(i.entry->arg & 15); }
int wide_of(const Inst& i) { return static_cast<int>(i.entry->arg >> 4 & 15); }

double scale_up(u32 s) { return power_of_byte(s >> 23 & 255); }
double scale_down(u32 s) { return reciprocal_power(s >> 23 & 255); }

bool fp16_overflow_clamps(const Wave& w) { return w.wg->launch->kernel->rsrc1 >> 26 & 1; }
int variant_of(const Wave& w, int small) {
  return small <= kBf8 && w.wg->launch->kernel->module->arch == "gfx942" ? 5 + small : small;
}
const MiniFormat& format_of(const Wave& w, int small) {
  int v = variant_of(w, small);
  return v == 5 ? kFp8Fnuz : v == 6 ? kBf8Fnuz : kFormats[v];
}

// Writes `count` bytes from `first` on into operand 0, keeping the others.
void write_part(Wave& w, const Inst& i, const u32* r, const Poison& p, int first, int count) {
  u64 lanes = w.exec();
  int d = i.op[0].reg;
  w.check_v_write(d, lanes);
  u32 mask = static_cast<u32>((1ull << (8 * count)) - 1) << (8 * first);
  for (int l = 0; l < kLanes; l++)
    if (lanes >> l & 1) w.v[d][l] = (w.v[d][l] & ~mask) | (r[l] << (8 * first) & mask);
  for (int b = first; b < first + count; b++) w.vp[d].b[b] = (w.vp[d].b[b] & ~lanes) | (p.any() & lanes);
}

// Two (or one) numbers into fp4 / fp8 / bf8. `scaled`: last operand is the scale.
void narrow(Wave& w, const Inst& i, bool scaled) {
  int small = small_of(i), wide = wide_of(i);
  const MiniFormat& f = format_of(w, small);
  u32 t[3][kLanes], r[kLanes];
  Poison p;
  bool packed_source = wide != kF32;
  const u32* a = read32(w, i, 1, 0, t[0], p);
  const u32* b = packed_source ? a : read32(w, i, 2, 1, t[1], p);
  const u32* s = scaled ? read32(w, i, packed_source ? 2 : 3, 2, t[2], p) : nullptr;
  bool clamp = fp16_overflow_clamps(w);
  int width = f.bits();
  for (int l = 0; l < kLanes; l++) {
    double x = from_wide(packed_source ? a[l] & 0xFFFF : a[l], wide),
           y = from_wide(packed_source ? b[l] >> 16 : b[l], wide);
    if (s) x *= scale_down(s[l]), y *= scale_down(s[l]);
    if (f.special == MiniFormat::kNone && (x != x || y != y))
      p.b[0] |= 1ull << l;  // no public source says what NaN becomes
    r[l] = encode_mini(f, x, clamp) | encode_mini(f, y, clamp) << width;
  }
  if (small == kFp4)
    write_part(w, i, r, p, i.op_sel >> 2, 1);
  else
    write_part(w, i, r, p, i.op_sel >> 3 & 1 ? 2 : 0, 2);
}

// Two numbers of a small format back: pk_f32 (register pair), pk_f16, pk_bf16.
void widen(Wave& w, const Inst& i, bool scaled) {
  int small = small_of(i), wide = wide_of(i);
  const float* table = mini_table(variant_of(w, small));
  u32 t[2][kLanes], r[2][kLanes];
  Poison p, ps;
  const u32* a = read32(w, i, 1, 0, t[0], p);
  const u32* s = scaled ? read32(w, i, 2, 1, t[1], ps) : nullptr;
  int first = small == kFp4 ? i.op_sel & 3 : (i.op_sel & 1) * 2, count = small == kFp4 ? 1 : 2;
  int width = small == kFp4 ? 4 : 8;
  for (int b = 0; b < count; b++) ps.b[0] |= p.b[first + b];
  for (int l = 0; l < kLanes; l++)
    for (int k = 0; k < 2; k++) {
      u32 code = a[l] >> (8 * first + width * k) & ((1u << width) - 1);
      double v = table[code];
      r[k][l] = to_wide(s ? v * scale_up(s[l]) : v, wide);
    }
  Inst d = i;
  d.sdwa = false;
  if (wide == kF32) {
    write32(w, d, r[0], ps, w.exec());
    d.op[0].reg++;
    write32(w, d, r[1], ps, w.exec());
  } else {
    for (int l = 0; l < kLanes; l++) r[0][l] = (r[0][l] & 0xFFFF) | r[1][l] << 16;
    write32(w, d, r[0], ps, w.exec());
  }
}

// One fp8 or bf8 number to f32: byte by op_sel (scaled form) or SDWA.
void widen_one(Wave& w, const Inst& i, bool scaled) {
  const float* table = mini_table(variant_of(w, small_of(i)));
  u32 t[2][kLanes], r[kLanes];
  Poison p;
  const u32* a = read32(w, i, 1, 0, t[0], p);
  const u32* s = scaled ? read32(w, i, 2, 1, t[1], p) : nullptr;
  int byte = scaled ? i.op_sel & 3 : 0;
  for (int l = 0; l < kLanes; l++) {
    double v = table[a[l] >> (8 * byte) & 255];
    r[l] = to_wide(s ? v * scale_up(s[l]) : v, wide_of(i));
  }
  Inst d = i;
  d.sdwa = false;
  write32(w, d, r, p, w.exec());
}

// 32 numbers at a time between FP6/BF6 (6 registers) and f32 (32), f16 or bf16 (16 registers).
void narrow32(Wave& w, const Inst& i, bool two_sources) {
  int small = small_of(i), wide = wide_of(i);
  u64 lanes = w.exec();
  u32 t[kLanes];
  Poison p;
  const u32* s = read32(w, i, two_sources ? 3 : 2, 2, t, p);
  u32 out[6][kLanes] = {};
  u64 unknown = p.any();
  auto source = [&](int k, int l) -> float {
    if (two_sources) {  // interleaved: even numbers from src0, odd from src1
      int reg = i.op[1 + (k & 1)].reg + k / 2;
      unknown |= w.vp[reg].any();
      return f32(w.v[reg][l]);
    }
    int reg = i.op[1].reg + k / 2;
    unknown |= w.vp[reg].any();
    return from_wide(w.v[reg][l] >> (16 * (k & 1)) & 0xFFFF, wide);
  };
  for (int o = 1; o <= (two_sources ? 2 : 1); o++)
    for (int r = 0; r < 16; r++) w.check_v(i.op[o].reg + r, lanes);
  for (int l = 0; l < kLanes; l++) {
    if (!(lanes >> l & 1)) continue;
    for (int k = 0; k < 32; k++) {
      double x = static_cast<double>(source(k, l)) * scale_down(s[l]);
      if (x != x) unknown |= 1ull << l;
      u64 code = encode_mini(kFormats[small], x, true);
      int at = 6 * k;
      u64 wide_code = code << (at % 32);
      out[at / 32][l] |= static_cast<u32>(wide_code);
      if (wide_code >> 32) out[at / 32 + 1][l] |= static_cast<u32>(wide_code >> 32);
    }
  }
  Inst d = i;
  for (int r = 0; r < 6; r++, d.op[0].reg++) write32(w, d, out[r], Poison::all(unknown), lanes);
}
void widen32(Wave& w, const Inst& i) {
  int small = small_of(i), wide = wide_of(i);
  u64 lanes = w.exec();
  u32 t[kLanes], r[32][kLanes];
  const float* table = mini_table(small);
  Poison p;
  const u32* s = read32(w, i, 2, 1, t, p);
  for (int k = 0; k < 6; k++) {
    w.check_v(i.op[1].reg + k, lanes);
    p |= w.vp[i.op[1].reg + k];
  }
  for (int l = 0; l < kLanes; l++)
    for (int k = 0; k < 32; k++) {
      int at = 6 * k, reg = i.op[1].reg + at / 32;
      u64 pair = w.v[reg][l];
      if (at % 32 > 26) pair |= static_cast<u64>(w.v[reg + 1][l]) << 32;
      u32 code = pair >> (at % 32) & 63;
      u32 v = to_wide(static_cast<double>(table[code]) * scale_up(s[l]), wide);
      if (wide == kF32)
        r[k][l] = v;
      else if (k & 1)
        r[k / 2][l] |= v << 16;
      else
        r[k / 2][l] = v & 0xFFFF;
    }
  Inst d = i;
  for (int k = 0; k < (wide == kF32 ? 32 : 16); k++, d.op[0].reg++) write32(w, d, r[k], p, lanes);
}

void pack_f16(Wave& w, const Inst& i) {  // v_pack_b32_f16: halves by op_sel
  u32 t[2][kLanes], r[kLanes];
  Poison pa, pb, p;
  const u32* a = read32(w, i, 1, 0, t[0], pa);
  const u32* b = read32(w, i, 2, 1, t[1], pb);
  int ha = i.op_sel & 1, hb = i.op_sel >> 1 & 1;
  for (int l = 0; l < kLanes; l++) r[l] = (a[l] >> (16 * ha) & 0xFFFF) | (b[l] >> (16 * hb) & 0xFFFF) << 16;
  for (int k = 0; k < 2; k++) p.b[k] = pa.b[2 * ha + k], p.b[2 + k] = pb.b[2 * hb + k];
  write32(w, i, r, p, w.exec(), Spread::kBytes);
}

template <class F>
void byte_source(Wave& w, const Inst& i, int byte, F f) {  // v_cvt_f32_ubyteN: only that byte must be known
  u32 t[kLanes], r[kLanes];
  Poison p, q;
  const u32* a = read32(w, i, 1, 0, t, p);
  q.b[0] = p.b[byte];
  for (int l = 0; l < kLanes; l++) r[l] = f(a[l]);
  write32(w, i, r, q, active_lanes(w, i));
}
template <class F>
void half_source(Wave& w, const Inst& i, F f) {  // reads the low half only
  u32 t[kLanes], r[kLanes];
  Poison p, q;
  const u32* a = read32(w, i, 1, 0, t, p);
  q.b[0] = p.b[0] | p.b[1];
  for (int l = 0; l < kLanes; l++) r[l] = f(a[l] & 0xFFFF);
  if (i.omod || i.clamp) output_modifiers(i, r);
  write32(w, i, r, q, active_lanes(w, i));
}
template <class F>
void to_f64(Wave& w, const Inst& i, F f) {
  map64<1>(w, i, 0, [f](u64 a) { return bits(f(static_cast<u32>(a))); });
}
template <class F>
void from_f64(Wave& w, const Inst& i, F f) {
  u64 a[kLanes];
  u32 r[kLanes];
  Unknown64 p;
  read64(w, i, i.op[1], a, p);
  for (int l = 0; l < kLanes; l++) r[l] = f(f64(a[l]));
  write32(w, i, r, Poison::all(p.low | p.high), w.exec());
}
void dot2_bf16(Wave& w, const Inst& i) {  // order of additions not known: double, one rounding
  map32<3>(w, i, [](u32 a, u32 b, u32 c) {
    double lo = static_cast<double>(bf16_to_float(static_cast<u16>(a))) * bf16_to_float(static_cast<u16>(b));
    double hi =
        static_cast<double>(bf16_to_float(static_cast<u16>(a >> 16))) * bf16_to_float(static_cast<u16>(b >> 16));
    return bits(static_cast<float>(lo + hi + f32(c)));
  });
}
u32 sat8(i32 v, i32 lo, i32 hi) { return static_cast<u32>(std::clamp(v, lo, hi)) & 255; }

#define ENTRY(name, ...) {name, [](Wave& w, const Inst& i) { __VA_ARGS__; }}
#define SMALL(name, format, wide, ...) \
  {name, [](Wave& w, const Inst& i) { __VA_ARGS__; }, Lit::kB32, (format) | (wide) << 4}
#define C1(name, expr) ENTRY(name, map32<1>(w, i, [](u32 a) -> u32 { return expr; }, Spread::kAll, 1, true))
#define C2(name, expr) ENTRY(name, map32<2>(w, i, [](u32 a, u32 b) -> u32 { return expr; }))

const OpEntry kTable[] = {
    C1("v_cvt_f32_u32", bits(static_cast<float>(a))),
    C1("v_cvt_f32_i32", bits(static_cast<float>(static_cast<i32>(a)))),
    C1("v_cvt_u32_f32", to_u32(f32(a))),
    C1("v_cvt_i32_f32", to_i32(f32(a))),
    C1("v_cvt_rpi_i32_f32", to_i32(std::floor(static_cast<double>(f32(a)) + 0.5))),
    C1("v_cvt_flr_i32_f32", to_i32(std::floor(f32(a)))),
    ENTRY("v_cvt_f32_ubyte0", byte_source(w, i, 0, [](u32 a) { return bits(static_cast<float>(a & 255)); })),
    ENTRY("v_cvt_f32_ubyte1", byte_source(w, i, 1, [](u32 a) { return bits(static_cast<float>(a >> 8 & 255)); })),
    ENTRY("v_cvt_f32_ubyte2", byte_source(w, i, 2, [](u32 a) { return bits(static_cast<float>(a >> 16 & 255)); })),
    ENTRY("v_cvt_f32_ubyte3", byte_source(w, i, 3, [](u32 a) { return bits(static_cast<float>(a >> 24)); })),
    {"v_cvt_f32_f16", [](Wave& w, const Inst& i) { half_source(w, i, [](u32 a) { return bits(hf(a)); }); }, Lit::kF16},
    C1("v_cvt_f16_f32", float_to_half(f32(a))),
    ENTRY("v_cvt_f32_bf16", half_source(w, i, [](u32 a) { return a << 16; })),
    ENTRY("v_cvt_f16_u16",
          half_source(w, i, [](u32 a) { return static_cast<u32>(float_to_half(static_cast<float>(a))); })),
    ENTRY("v_cvt_f16_i16",
          half_source(w, i, [](u32 a) { return static_cast<u32>(float_to_half(static_cast<int16_t>(a))); })),
    C2("v_cvt_pk_bf16_f32", float_to_bf16(f32(a)) | static_cast<u32>(float_to_bf16(f32(b))) << 16),
    C2("v_cvt_pk_f16_f32", float_to_half(f32(a)) | static_cast<u32>(float_to_half(f32(b))) << 16),
    C2("v_cvt_pkrtz_f16_f32", half_rtz(f32(a)) | static_cast<u32>(half_rtz(f32(b))) << 16),
    C2("v_cvt_pk_u16_u32", std::min(a, 65535u) | std::min(b, 65535u) << 16),
    C2("v_cvt_pk_i16_i32", (static_cast<u32>(std::clamp(static_cast<i32>(a), -32768, 32767)) & 0xFFFF) |
                               static_cast<u32>(std::clamp(static_cast<i32>(b), -32768, 32767)) << 16),
    ENTRY("v_ashr_pk_i8_i32", map32<3>(w, i,
                                       [](u32 a, u32 b, u32 c) {
                                         return sat8(static_cast<i32>(a) >> (c & 31), -128, 127) |
                                                sat8(static_cast<i32>(b) >> (c & 31), -128, 127) << 8;
                                       })),
    ENTRY("v_ashr_pk_u8_i32", map32<3>(w, i,
                                       [](u32 a, u32 b, u32 c) {
                                         return sat8(static_cast<i32>(a) >> (c & 31), 0, 255) |
                                                sat8(static_cast<i32>(b) >> (c & 31), 0, 255) << 8;
                                       })),
    ENTRY("v_pack_b32_f16", pack_f16(w, i)),
    ENTRY("v_dot2c_f32_bf16", dot2_bf16(w, i)),
    ENTRY("v_dot2_f32_bf16", dot2_bf16(w, i)),
    ENTRY("v_cvt_f64_f32", to_f64(w, i, [](u32 a) { return static_cast<double>(f32(a)); })),
    ENTRY("v_cvt_f64_u32", to_f64(w, i, [](u32 a) { return static_cast<double>(a); })),
    ENTRY("v_cvt_f64_i32", to_f64(w, i, [](u32 a) { return static_cast<double>(static_cast<i32>(a)); })),
    {"v_cvt_f32_f64",
     [](Wave& w, const Inst& i) { from_f64(w, i, [](double a) { return bits(static_cast<float>(a)); }); }, Lit::kF64},
    {"v_cvt_u32_f64", [](Wave& w, const Inst& i) { from_f64(w, i, to_u32); }, Lit::kF64},
    {"v_cvt_i32_f64", [](Wave& w, const Inst& i) { from_f64(w, i, to_i32); }, Lit::kF64},

    SMALL("v_cvt_pk_fp8_f32", kFp8, kF32, narrow(w, i, false)),
    SMALL("v_cvt_pk_bf8_f32", kBf8, kF32, narrow(w, i, false)),
    SMALL("v_cvt_f32_fp8", kFp8, kF32, widen_one(w, i, false)),
    SMALL("v_cvt_f32_bf8", kBf8, kF32, widen_one(w, i, false)),
    SMALL("v_cvt_pk_f32_fp8", kFp8, kF32, widen(w, i, false)),
    SMALL("v_cvt_pk_f32_bf8", kBf8, kF32, widen(w, i, false)),
    SMALL("v_cvt_scalef32_f32_fp8", kFp8, kF32, widen_one(w, i, true)),
    SMALL("v_cvt_scalef32_f32_bf8", kBf8, kF32, widen_one(w, i, true)),
#define FAMILY(name, format)                                                       \
  SMALL("v_cvt_scalef32_pk_" name "_f32", format, kF32, narrow(w, i, true)),       \
      SMALL("v_cvt_scalef32_pk_" name "_f16", format, kF16, narrow(w, i, true)),   \
      SMALL("v_cvt_scalef32_pk_" name "_bf16", format, kBf16, narrow(w, i, true)), \
      SMALL("v_cvt_scalef32_pk_f32_" name, format, kF32, widen(w, i, true)),       \
      SMALL("v_cvt_scalef32_pk_f16_" name, format, kF16, widen(w, i, true)),       \
      SMALL("v_cvt_scalef32_pk_bf16_" name, format, kBf16, widen(w, i, true))
    FAMILY("fp4", kFp4),
    FAMILY("fp8", kFp8),
    FAMILY("bf8", kBf8),
#define FAMILY6(name, format)                                                           \
  SMALL("v_cvt_scalef32_pk32_" name "_f16", format, kF16, narrow32(w, i, false)),       \
      SMALL("v_cvt_scalef32_pk32_" name "_bf16", format, kBf16, narrow32(w, i, false)), \
      SMALL("v_cvt_scalef32_2xpk16_" name "_f32", format, kF32, narrow32(w, i, true)),  \
      SMALL("v_cvt_scalef32_pk32_f32_" name, format, kF32, widen32(w, i)),              \
      SMALL("v_cvt_scalef32_pk32_f16_" name, format, kF16, widen32(w, i)),              \
      SMALL("v_cvt_scalef32_pk32_bf16_" name, format, kBf16, widen32(w, i))
    FAMILY6("fp6", kFp6),
    FAMILY6("bf6", kBf6),
};

}  // namespace

OpTable valu_convert_ops() { return {kTable, sizeof kTable / sizeof *kTable}; }

}  // namespace hipsim
