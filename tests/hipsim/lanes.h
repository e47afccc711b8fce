// Helpers for vector instructions: operands as arrays of 64 lanes, results merged by EXEC, poison carried along.
// The loops are plain so that the compiler vectorises them.
#pragma once

#include <cmath>

#include "sim.h"

namespace hipsim {

inline float f32(u32 b) {
  float f;
  memcpy(&f, &b, 4);
  return f;
}
inline u32 bits(float f) {
  u32 b;
  memcpy(&b, &f, 4);
  return b;
}
inline double f64(u64 b) {
  double f;
  memcpy(&f, &b, 8);
  return f;
}
inline u64 bits(double f) {
  u64 b;
  memcpy(&b, &f, 8);
  return b;
}
float half_to_float(u16 h);
u16 float_to_half(float f);    // nearest even
u16 double_to_half(double d);  // one rounding
inline float bf16_to_float(u16 b) { return f32(static_cast<u32>(b) << 16); }
u16 float_to_bf16(float f);  // nearest even, NaN stays a quiet NaN

// How poison of the sources becomes poison of the result.
enum class Spread {
  kAll,    // any unknown byte makes the whole result unknown
  kBytes,  // byte k of the result depends on byte k of the sources only (bitwise operations)
};

// lanes.cc
const u32* read32_slow(Wave& w, const Inst& i, const Operand& o, int source, u32* tmp, Poison& p);
u64 active_lanes(const Wave& w, const Inst& i);  // EXEC, less the lanes that DPP disables
void write_sdwa(Wave& w, const Inst& i, const u32* result, const Poison& p, u64 lanes);
void output_modifiers(const Inst& i, u32* result);
// 64-bit operands keep the lanes with unknown bits of their low and high dwords apart.
struct Unknown64 {
  u64 low = 0, high = 0;
};
enum class Flow { kAll, kUp, kDown, kStraight };  // which dwords of a result depend on which of the sources
void read64(Wave& w, const Inst& i, const Operand& o, u64* out, Unknown64& p);
void write64(Wave& w, const Operand& d, const u64* result, const Unknown64& p, u64 lanes, Flow flow);
void write_mask(Wave& w, int sgpr, u64 mask, u64 poison);  // a lane mask into an SGPR pair
u64 lane_mask_source(Wave& w, const Operand& o, u64& poison);

// Operand `k` as 64 lanes; `source` is 0 for src0 (DPP and SDWA select on it), 1 for src1, 2 for src2.
inline const u32* read32(Wave& w, const Inst& i, int k, int source, u32* tmp, Poison& p) {
  const Operand& o = i.op[k];
  if (o.kind == Kind::kVgpr && !i.dpp && !i.sdwa && !o.neg && !o.abs) {
    w.check_v(o.reg, w.exec());
    p |= w.vp[o.reg];
    return w.v[o.reg];
  }
  return read32_slow(w, i, o, source, tmp, p);
}

inline void set_poison(Wave& w, int reg, const Poison& p, u64 lanes, Spread spread) {
  Poison& d = w.vp[reg];
  if (spread == Spread::kAll) {
    u64 u = p.any() & lanes;
    for (u64& b : d.b) b = (b & ~lanes) | u;
  } else {
    for (int k = 0; k < 4; k++) d.b[k] = (d.b[k] & ~lanes) | (p.b[k] & lanes);
  }
}

// Result of a 32-bit operation into operand 0.
inline void write32(Wave& w, const Inst& i, const u32* result, const Poison& p, u64 lanes,
                    Spread spread = Spread::kAll) {
  if (i.sdwa) return write_sdwa(w, i, result, p, lanes);
  int r = i.op[0].reg;
  w.check_v_write(r, lanes);
  u32* d = w.v[r];
  for (int l = 0; l < kLanes; l++) d[l] = lanes >> l & 1 ? result[l] : d[l];
  set_poison(w, r, p, lanes, spread);
}

// d = f(s0, ..) per lane on 32-bit patterns. N sources from operand `first` on.
template <int N, class F>
inline void map32(Wave& w, const Inst& i, F f, Spread spread = Spread::kAll, int first = 1, bool is_float = false) {
  alignas(64) u32 t[3][kLanes];
  Poison p;
  const u32 *a = read32(w, i, first, 0, t[0], p), *b = a, *c = a;
  if constexpr (N > 1) b = read32(w, i, first + 1, 1, t[1], p);
  if constexpr (N > 2) c = read32(w, i, first + 2, 2, t[2], p);
  auto compute = [&](u32* d) {
#pragma GCC ivdep
    for (int l = 0; l < kLanes; l++) {
      if constexpr (N == 1) d[l] = f(a[l]);
      if constexpr (N == 2) d[l] = f(a[l], b[l]);
      if constexpr (N == 3) d[l] = f(a[l], b[l], c[l]);
    }
  };
  u64 lanes = active_lanes(w, i);
  if (lanes == kAllLanes && !i.sdwa && !i.omod && !i.clamp) {
    w.check_v_write(i.op[0].reg, lanes);
    compute(w.v[i.op[0].reg]);
    set_poison(w, i.op[0].reg, p, lanes, spread);
    return;
  }
  alignas(64) u32 r[kLanes];
  compute(r);
  if (i.omod || i.clamp) {
    if (!is_float) fail("clamp of an integer result is not modelled");
    output_modifiers(i, r);
  }
  write32(w, i, r, p, lanes, spread);
}

template <int N, class F>
inline void mapf(Wave& w, const Inst& i, F f, int first = 1) {
  auto g = [f](auto... x) { return bits(f(f32(x)...)); };
  map32<N>(w, i, g, Spread::kAll, first, true);
}

// 64-bit results; sources are widened by `wide` (bit k: source k has 64 bits).
template <int N, class F>
inline void map64(Wave& w, const Inst& i, unsigned wide, F f, Flow flow = Flow::kAll) {
  u64 s[3][kLanes];
  Unknown64 p;
  for (int k = 0; k < N; k++) {
    if (wide >> k & 1) {
      read64(w, i, i.op[1 + k], s[k], p);
    } else {
      u32 t[kLanes];
      Poison q;
      const u32* x = read32(w, i, 1 + k, k, t, q);
      p.low |= q.any(), p.high |= q.any();
      for (int l = 0; l < kLanes; l++) s[k][l] = x[l];
    }
  }
  u64 r[kLanes];
  for (int l = 0; l < kLanes; l++) {
    if constexpr (N == 1) r[l] = f(s[0][l]);
    if constexpr (N == 2) r[l] = f(s[0][l], s[1][l]);
    if constexpr (N == 3) r[l] = f(s[0][l], s[1][l], s[2][l]);
  }
  if (i.omod || i.clamp) fail("output modifiers on 64-bit results are not modelled");
  write64(w, i.op[0], r, p, w.exec(), flow);
}

// Lane masks of comparisons; inactive lanes give 0.
template <class F>
inline void compare32(Wave& w, const Inst& i, F f, bool write_exec = false) {
  u32 t[2][kLanes];
  Poison p;
  const u32* a = read32(w, i, 1, 0, t[0], p);
  const u32* b = read32(w, i, 2, 1, t[1], p);
  u64 mask = 0, lanes = active_lanes(w, i);
  for (int l = 0; l < kLanes; l++) mask |= static_cast<u64>(f(a[l], b[l])) << l;
  write_mask(w, i.op[0].reg, mask & lanes, p.any() & lanes);
  if (write_exec) write_mask(w, kExec, mask & lanes, p.any() & lanes);
}

}  // namespace hipsim
