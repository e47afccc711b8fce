// Vector integer and bit operations of 16, 32 and 64 bits, and their comparisons.
// Meaning: CDNA3/CDNA4 ISA documents, "Vector ALU instructions".
#include <algorithm>
#include <limits>

#include "lanes.h"
#include "opcodes.h"

namespace hipsim {
namespace {

i32 s(u32 v) { return static_cast<i32>(v); }
u32 u(i64 v) { return static_cast<u32>(v); }
u64 wide(u32 v) { return v; }
i32 s24(u32 v) { return static_cast<i32>(v << 8) >> 8; }
u32 u24(u32 v) { return v & 0xFFFFFF; }
u16 h(u32 v) { return static_cast<u16>(v); }
int16_t sh(u32 v) { return static_cast<int16_t>(v); }

// ---- poison of bit movements whose control is the same in all lanes -------------------------------------------------
bool uniform(const Wave& w, const Operand& o, u32& value) {
  if (o.kind == Kind::kConst)
    value = static_cast<u32>(o.bits);
  else if (o.kind == Kind::kSgpr && !w.sp[o.reg])
    value = w.s[o.reg];
  else
    return false;
  return true;
}

// Runs `run`; where a source is partly unknown, the result's unknown bytes are q(poison of the sources).
template <class R, class Q>
void precise(Wave& w, const Inst& i, R run, Q q) {
  Poison p[3];
  u64 any = 0;
  for (int k = 0; k < 3 && k + 1 < i.ops; k++) {
    const Operand& o = i.op[k + 1];
    if (o.kind == Kind::kVgpr) p[k] = w.vp[o.reg];
    if (o.kind == Kind::kSgpr && w.sp[o.reg]) return run();
    any |= p[k].any();
  }
  if (!(any & w.exec()) || i.sdwa || i.dpp) return run();
  Poison r;
  if (!q(p, r)) return run();
  run();
  set_poison(w, i.op[0].reg, r, w.exec(), Spread::kBytes);
}

Poison shifted(const Poison& p, int left) {  // left < 0: to the right
  Poison r;
  for (int b = 0; b < 4; b++)
    for (int bit = 8 * b - left; bit < 8 * b + 8 - left; bit++)
      if (bit >= 0 && bit < 32) r.b[b] |= p.b[bit / 8];
  return r;
}
Poison masked(Poison p, u32 mask) {
  for (int b = 0; b < 4; b++)
    if (!(mask >> (8 * b) & 0xFF)) p.b[b] = 0;
  return p;
}
Poison either(Poison a, const Poison& b) { return a |= b; }

template <class F>
void shift(Wave& w, const Inst& i, F f, bool left) {
  precise(
      w, i, [&] { map32<2>(w, i, f); },
      [&](Poison* p, Poison& r) {
        u32 n;
        if (!uniform(w, i.op[1], n)) return false;
        r = shifted(p[1], left ? s(n & 31) : -s(n & 31));
        return true;
      });
}
template <class F>
void masking(Wave& w, const Inst& i, F f) {
  precise(
      w, i, [&] { map32<2>(w, i, f, Spread::kBytes); },
      [&](Poison* p, Poison& r) {
        u32 m = ~0u;
        if (!uniform(w, i.op[1], m)) uniform(w, i.op[2], m);
        r = masked(either(p[0], p[1]), m);
        return true;
      });
}

// Byte k of the result: selector 0-3 a byte of b, 4-7 of a, 8-11 the sign of a 16-bit half, 12 zero, above 0xFF.
u32 perm(u32 a, u32 b, u32 sel) {
  u32 r = 0;
  for (int k = 0; k < 4; k++) {
    u32 c = sel >> (8 * k) & 0xFF;
    u32 byte = (c & 4 ? a : b) >> (8 * (c & 3)) & 0xFF;
    u32 sign = ((c & 2 ? a : b) >> (c & 1 ? 31 : 15) & 1) * 0xFF;
    u32 v = c < 8 ? byte : c < 12 ? sign : c == 12 ? 0 : 0xFF;
    r |= v << (8 * k);
  }
  return r;
}

void perm_op(Wave& w, const Inst& i) {
  precise(
      w, i, [&] { map32<3>(w, i, perm); },
      [&](Poison* p, Poison& r) {
        u32 sel;
        if (!uniform(w, i.op[3], sel)) return false;
        for (int k = 0; k < 4; k++) {
          u32 c = sel >> (8 * k) & 0xFF;
          if (c < 4)
            r.b[k] = p[1].b[c];
          else if (c < 8)
            r.b[k] = p[0].b[c - 4];
          else if (c < 12)
            r.b[k] = c < 10 ? p[1].b[2 * (c - 8) + 1] : p[0].b[2 * (c - 10) + 1];
        }
        return true;
      });
}

u32 bfe_u(u32 a, u32 o, u32 n) {
  o &= 31, n &= 31;
  return a >> o & ((1u << n) - 1);
}
u32 bfe_i(u32 a, u32 o, u32 n) {
  o &= 31, n &= 31;
  if (n == 0) return 0;
  if (o + n >= 32) return u(s(a) >> o);
  return u(s(a << (32 - o - n)) >> (32 - n));
}
template <class F>
void bfe(Wave& w, const Inst& i, F f, bool sign) {
  precise(
      w, i, [&] { map32<3>(w, i, f); },
      [&](Poison* p, Poison& r) {
        u32 o, n;
        if (sign || !uniform(w, i.op[2], o) || !uniform(w, i.op[3], n)) return false;
        r = masked(shifted(p[0], -s(o & 31)), (1u << (n & 31)) - 1);
        return true;
      });
}

u32 bitop3(u32 a, u32 b, u32 c, u32 table) {
  u32 r = 0;
  for (u32 k = 0; k < 8; k++)
    if (table >> k & 1) r |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  return r;
}

// v_add_i32, v_sub_i32: they wrap around as the unsigned forms do; with clamp the exact sum saturates.
template <class F>
void saturating(Wave& w, const Inst& i, F f) {
  if (!i.clamp) return map32<2>(w, i, [f](u32 a, u32 b) { return u(f(s(a), s(b))); });
  Inst plain = i;
  plain.clamp = false;
  map32<2>(w, plain, [f](u32 a, u32 b) {
    return u(std::clamp<i64>(f(s(a), s(b)), std::numeric_limits<i32>::min(), std::numeric_limits<i32>::max()));
  });
}

// d, carry-out mask = f(a, b, carry in)
template <class F>
void carry(Wave& w, const Inst& i, F f, bool carry_in) {
  u32 t[2][kLanes];
  Poison p;
  const u32* a = read32(w, i, 2, 0, t[0], p);
  const u32* b = read32(w, i, 3, 1, t[1], p);
  u64 in = 0, unknown = 0, out = 0, lanes = active_lanes(w, i);
  if (carry_in) in = lane_mask_source(w, i.op[4], unknown);
  for (u64& x : p.b) x |= unknown;
  u32 r[kLanes];
  for (int l = 0; l < kLanes; l++) {
    u64 v = f(wide(a[l]), wide(b[l]), in >> l & 1);
    r[l] = static_cast<u32>(v);
    out |= (v >> 32 & 1) << l;
  }
  write32(w, i, r, p, lanes);
  write_mask(w, i.op[1].reg, out & lanes, p.any() & lanes);
}

void cndmask(Wave& w, const Inst& i) {
  u32 t[2][kLanes];
  Poison pa, pb, p;
  const u32* a = read32(w, i, 1, 0, t[0], pa);
  const u32* b = read32(w, i, 2, 1, t[1], pb);
  u64 unknown = 0;
  Operand vcc;
  vcc.kind = Kind::kSgpr, vcc.reg = kVcc;
  u64 m = lane_mask_source(w, i.ops > 3 ? i.op[3] : vcc, unknown);
  u32 r[kLanes];
  for (int l = 0; l < kLanes; l++) r[l] = m >> l & 1 ? b[l] : a[l];
  for (int k = 0; k < 4; k++) p.b[k] = (pa.b[k] & ~m) | (pb.b[k] & m) | unknown;
  write32(w, i, r, p, active_lanes(w, i), Spread::kBytes);
}

void mad64(Wave& w, const Inst& i, bool is_signed) {  // v_mad_u64_u32: d64, carry, a, b, c64
  u32 t[2][kLanes];
  u64 c[kLanes], r[kLanes];
  Poison factors;
  const u32* a = read32(w, i, 2, 0, t[0], factors);
  const u32* b = read32(w, i, 3, 1, t[1], factors);
  Unknown64 p{factors.any(), 0};
  read64(w, i, i.op[4], c, p);
  u64 out = 0;
  for (int l = 0; l < kLanes; l++) {
    u64 product = is_signed ? static_cast<u64>(static_cast<i64>(s(a[l])) * s(b[l])) : wide(a[l]) * b[l];
    r[l] = product + c[l];
    out |= static_cast<u64>(r[l] < product) << l;
  }
  write64(w, i.op[0], r, p, w.exec(), Flow::kUp);
  write_mask(w, i.op[1].reg, out & w.exec(), (p.low | p.high) & w.exec());
}

template <class T, class F>
void compare64(Wave& w, const Inst& i, F f, bool to_exec) {
  u64 a[kLanes], b[kLanes], mask = 0;
  Unknown64 p;
  read64(w, i, i.op[1], a, p);
  read64(w, i, i.op[2], b, p);
  for (int l = 0; l < kLanes; l++) mask |= static_cast<u64>(f(static_cast<T>(a[l]), static_cast<T>(b[l]))) << l;
  write_mask(w, i.op[0].reg, mask & w.exec(), (p.low | p.high) & w.exec());
  if (to_exec) write_mask(w, kExec, mask & w.exec(), (p.low | p.high) & w.exec());
}

void mbcnt(Wave& w, const Inst& i, bool high) {
  u32 t[2][kLanes], r[kLanes];
  Poison p;
  const u32* m = read32(w, i, 1, 0, t[0], p);
  const u32* add = read32(w, i, 2, 1, t[1], p);
  for (int l = 0; l < kLanes; l++) {
    int below = high ? std::max(0, l - 32) : std::min(l, 32);
    r[l] = add[l] + static_cast<u32>(__builtin_popcountll(m[l] & ((1ull << below) - 1)));
  }
  write32(w, i, r, p, w.exec());
}

void mov64(Wave& w, const Inst& i) {
  map64<1>(w, i, 1, [](u64 a) { return a; }, Flow::kStraight);
}

#define ENTRY(name, ...) {name, [](Wave& w, const Inst& i) { __VA_ARGS__; }}
#define ENTRY64(name, ...) {name, [](Wave& w, const Inst& i) { __VA_ARGS__; }, Lit::kB64}
#define A1(name, expr) ENTRY(name, map32<1>(w, i, [](u32 a) -> u32 { return expr; }))
#define A2(name, expr) ENTRY(name, map32<2>(w, i, [](u32 a, u32 b) -> u32 { return expr; }))
#define A3(name, expr) ENTRY(name, map32<3>(w, i, [](u32 a, u32 b, u32 c) -> u32 { return expr; }))
#define B1(name, expr) ENTRY(name, map32<1>(w, i, [](u32 a) -> u32 { return expr; }, Spread::kBytes))
#define B2(name, expr) ENTRY(name, map32<2>(w, i, [](u32 a, u32 b) -> u32 { return expr; }, Spread::kBytes))
#define B3(name, expr) ENTRY(name, map32<3>(w, i, [](u32 a, u32 b, u32 c) -> u32 { return expr; }, Spread::kBytes))
// Results of 16-bit operations have zeros in the upper half on this generation.
#define H2(name, expr) A2(name, static_cast<u16>(expr))
#define H3(name, expr) A3(name, static_cast<u16>(expr))
#define CMP(name, T, op)                                                                                      \
  ENTRY("v_cmp_" name, compare32(w, i, [](u32 a, u32 b) { return static_cast<T>(a) op static_cast<T>(b); })), \
      ENTRY("v_cmpx_" name,                                                                                   \
            compare32(w, i, [](u32 a, u32 b) { return static_cast<T>(a) op static_cast<T>(b); }, true))
#define CMP64(name, T, op)                                                   \
  ENTRY64("v_cmp_" name, compare64<T>(                                       \
                             w, i, [](T a, T b) { return a op b; }, false)), \
      ENTRY64("v_cmpx_" name, compare64<T>(w, i, [](T a, T b) { return a op b; }, true))
#define ALL(M, t, T) \
  M("lt_" t, T, <), M("eq_" t, T, ==), M("le_" t, T, <=), M("gt_" t, T, >), M("ne_" t, T, !=), M("ge_" t, T, >=)

const OpEntry kTable[] = {
    B1("v_mov_b32", a),
    ENTRY64("v_mov_b64", mov64(w, i)),
    B1("v_not_b32", ~a),
    ENTRY("v_and_b32", masking(w, i, [](u32 a, u32 b) { return a & b; })),
    B2("v_or_b32", a | b),
    B2("v_xor_b32", a ^ b),
    B2("v_xnor_b32", ~(a ^ b)),
    ENTRY("v_lshlrev_b32", shift(
                               w, i, [](u32 a, u32 b) { return b << (a & 31); }, true)),
    ENTRY("v_lshrrev_b32", shift(
                               w, i, [](u32 a, u32 b) { return b >> (a & 31); }, false)),
    A2("v_ashrrev_i32", u(s(b) >> (a & 31))),
    A2("v_add_u32", a + b),
    A2("v_sub_u32", a - b),
    A2("v_subrev_u32", b - a),
    ENTRY("v_add_i32", saturating(w, i, [](i64 a, i64 b) { return a + b; })),
    ENTRY("v_sub_i32", saturating(w, i, [](i64 a, i64 b) { return a - b; })),
    A2("v_mul_lo_u32", a* b),
    A2("v_mul_hi_u32", u(static_cast<i64>(wide(a) * b >> 32))),
    A2("v_mul_hi_i32", u(static_cast<i64>(s(a)) * s(b) >> 32)),
    A2("v_mul_u32_u24", u24(a) * u24(b)),
    A2("v_mul_i32_i24", u(static_cast<i64>(s24(a)) * s24(b))),
    A2("v_mul_hi_u32_u24", u(static_cast<i64>(wide(u24(a)) * u24(b) >> 32))),
    A3("v_mad_u32_u24", u24(a) * u24(b) + c),
    A3("v_mad_i32_i24", u(static_cast<i64>(s24(a)) * s24(b)) + c),
    A2("v_min_u32", a < b ? a : b),
    A2("v_max_u32", a > b ? a : b),
    A2("v_min_i32", s(a) < s(b) ? a : b),
    A2("v_max_i32", s(a) > s(b) ? a : b),
    A3("v_min3_u32", std::min({a, b, c})),
    A3("v_max3_u32", std::max({a, b, c})),
    A3("v_min3_i32", u(std::min({s(a), s(b), s(c)}))),
    A3("v_max3_i32", u(std::max({s(a), s(b), s(c)}))),
    A3("v_med3_u32", std::max(std::min(a, b), std::min(std::max(a, b), c))),
    A3("v_med3_i32", u(std::max(std::min(s(a), s(b)), std::min(std::max(s(a), s(b)), s(c))))),
    A3("v_add3_u32", a + b + c),
    A3("v_lshl_add_u32", (a << (b & 31)) + c),
    A3("v_add_lshl_u32", (a + b) << (c & 31)),
    A3("v_xad_u32", (a ^ b) + c),
    A3("v_sad_u32", (a > b ? a - b : b - a) + c),
    ENTRY("v_lshl_or_b32", precise(
                               w, i, [&] { map32<3>(w, i, [](u32 a, u32 b, u32 c) { return a << (b & 31) | c; }); },
                               [&](Poison* p, Poison& r) {
                                 u32 n;
                                 if (!uniform(w, i.op[2], n)) return false;
                                 r = either(shifted(p[0], s(n & 31)), p[2]);
                                 return true;
                               })),
    ENTRY("v_and_or_b32",
          precise(
              w, i, [&] { map32<3>(w, i, [](u32 a, u32 b, u32 c) { return (a & b) | c; }, Spread::kBytes); },
              [&](Poison* p, Poison& r) {
                u32 m = ~0u;
                if (!uniform(w, i.op[1], m)) uniform(w, i.op[2], m);
                r = either(masked(either(p[0], p[1]), m), p[2]);
                return true;
              })),
    B3("v_or3_b32", a | b | c),
    ENTRY("v_bfi_b32",
          precise(
              w, i, [&] { map32<3>(w, i, [](u32 a, u32 b, u32 c) { return (a & b) | (~a & c); }, Spread::kBytes); },
              [&](Poison* p, Poison& r) {
                u32 m;
                if (!uniform(w, i.op[1], m)) return false;
                r = either(masked(p[1], m), masked(p[2], ~m));
                return true;
              })),
    ENTRY("v_bfe_u32", bfe(w, i, bfe_u, false)),
    ENTRY("v_bfe_i32", bfe(w, i, bfe_i, true)),
    A2("v_bfm_b32", ((1u << (a & 31)) - 1) << (b & 31)),
    ENTRY("v_alignbit_b32", precise(
                                w, i,
                                [&] {
                                  map32<3>(w, i, [](u32 a, u32 b, u32 c) {
                                    return static_cast<u32>((wide(a) << 32 | b) >> (c & 31));
                                  });
                                },
                                [&](Poison* p, Poison& r) {
                                  u32 n;
                                  if (!uniform(w, i.op[3], n)) return false;
                                  n &= 31;
                                  r = either(shifted(p[1], -s(n)), n ? shifted(p[0], 32 - s(n)) : Poison{});
                                  return true;
                                })),
    ENTRY("v_alignbyte_b32", precise(
                                 w, i,
                                 [&] {
                                   map32<3>(w, i, [](u32 a, u32 b, u32 c) {
                                     return static_cast<u32>((wide(a) << 32 | b) >> (8 * (c & 3)));
                                   });
                                 },
                                 [&](Poison* p, Poison& r) {
                                   u32 n;
                                   if (!uniform(w, i.op[3], n)) return false;
                                   n = 8 * (n & 3);
                                   r = either(shifted(p[1], -s(n)), n ? shifted(p[0], 32 - s(n)) : Poison{});
                                   return true;
                                 })),
    ENTRY("v_perm_b32", perm_op(w, i)),
    ENTRY("v_bitop3_b32", u32 table = i.imm; map32<3>(
              w, i, [table](u32 a, u32 b, u32 c) { return bitop3(a, b, c, table); }, Spread::kBytes)),
    ENTRY("v_bitop3_b16", u32 table = i.imm; map32<3>(
              w, i, [table](u32 a, u32 b, u32 c) { return bitop3(a, b, c, table) & 0xFFFF; }, Spread::kBytes)),
    A1("v_bfrev_b32",
       [](u32 x) {
         u32 r = 0;
         for (int k = 0; k < 32; k++) r |= (x >> k & 1) << (31 - k);
         return r;
       }(a)),
    A1("v_ffbh_u32", a ? u(__builtin_clz(a)) : ~0u),
    A1("v_ffbl_b32", a ? u(__builtin_ctz(a)) : ~0u),
    A1("v_ffbh_i32", a == 0 || a == ~0u ? ~0u : u(__builtin_clz(s(a) < 0 ? ~a : a))),
    A2("v_bcnt_u32_b32", u(__builtin_popcount(a)) + b),
    ENTRY("v_mbcnt_lo_u32_b32", mbcnt(w, i, false)),
    ENTRY("v_mbcnt_hi_u32_b32", mbcnt(w, i, true)),
    A1("v_prng_b32", a << 1 ^ (a >> 31 ? 0xC5 : 0)),
    ENTRY("v_cndmask_b32", cndmask(w, i)),
    ENTRY("v_add_co_u32", carry(
                              w, i, [](u64 a, u64 b, u64) { return a + b; }, false)),
    ENTRY("v_sub_co_u32", carry(
                              w, i, [](u64 a, u64 b, u64) { return a - b; }, false)),
    ENTRY("v_subrev_co_u32", carry(
                                 w, i, [](u64 a, u64 b, u64) { return b - a; }, false)),
    ENTRY("v_addc_co_u32", carry(
                               w, i, [](u64 a, u64 b, u64 c) { return a + b + c; }, true)),
    ENTRY("v_subb_co_u32", carry(
                               w, i, [](u64 a, u64 b, u64 c) { return a - b - c; }, true)),
    ENTRY("v_subbrev_co_u32", carry(
                                  w, i, [](u64 a, u64 b, u64 c) { return b - a - c; }, true)),
    ENTRY64("v_mad_u64_u32", mad64(w, i, false)),
    ENTRY64("v_mad_i64_i32", mad64(w, i, true)),
    ENTRY64("v_lshlrev_b64", map64<2>(
                                 w, i, 2, [](u64 a, u64 b) { return b << (a & 63); }, Flow::kUp)),
    ENTRY64("v_lshrrev_b64", map64<2>(
                                 w, i, 2, [](u64 a, u64 b) { return b >> (a & 63); }, Flow::kDown)),
    ENTRY64("v_ashrrev_i64",
            map64<2>(
                w, i, 2, [](u64 a, u64 b) { return static_cast<u64>(static_cast<i64>(b) >> (a & 63)); }, Flow::kDown)),
    ENTRY64("v_lshl_add_u64", map64<3>(
                                  w, i, 5, [](u64 a, u64 b, u64 c) { return (a << (b & 7)) + c; }, Flow::kUp)),

    H2("v_add_u16", a + b),
    H2("v_sub_u16", a - b),
    H2("v_subrev_u16", b - a),
    H2("v_mul_lo_u16", u(h(a)) * h(b)),
    H2("v_lshlrev_b16", b << (a & 15)),
    H2("v_lshrrev_b16", h(b) >> (a & 15)),
    H2("v_ashrrev_i16", sh(b) >> (a & 15)),
    H2("v_min_u16", std::min(h(a), h(b))),
    H2("v_max_u16", std::max(h(a), h(b))),
    H2("v_min_i16", std::min(sh(a), sh(b))),
    H2("v_max_i16", std::max(sh(a), sh(b))),
    H3("v_mad_u16", u(h(a)) * h(b) + c),
    H3("v_mad_legacy_u16", u(h(a)) * h(b) + c),

    ALL(CMP, "u32", u32),
    ALL(CMP, "i32", i32),
    ALL(CMP, "u16", u16),
    ALL(CMP, "i16", int16_t),
    ALL(CMP64, "u64", u64),
    ALL(CMP64, "i64", i64),
    ENTRY("v_nop", (void)w; (void)i),
};

}  // namespace

OpTable valu_int_ops() { return {kTable, sizeof kTable / sizeof *kTable}; }

}  // namespace hipsim
