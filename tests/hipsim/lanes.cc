#include "lanes.h"

namespace hipsim {

float half_to_float(u16 h) {
  _Float16 f;
  memcpy(&f, &h, 2);
  return static_cast<float>(f);
}
u16 float_to_half(float f) {
  _Float16 h = static_cast<_Float16>(f);
  u16 b;
  memcpy(&b, &h, 2);
  return b;
}
u16 double_to_half(double d) {
  _Float16 h = static_cast<_Float16>(d);
  u16 b;
  memcpy(&b, &h, 2);
  return b;
}
u16 float_to_bf16(float f) {
  u32 b = bits(f);
  if (f != f) return static_cast<u16>(b >> 16 | 0x40);
  return static_cast<u16>((b + 0x7FFF + (b >> 16 & 1)) >> 16);
}

namespace {

// Source lane of every lane under a DPP control, -1 where there is none. Values: LLVM's SIDefines (DppCtrl), meaning:
// "DPP" in the CDNA ISA documents. A row is 16 lanes.
int dpp_source(u32 ctrl, int l) {
  int row = l & ~15, in = l & 15;
  if (ctrl <= 0xFF) return (l & ~3) + static_cast<int>(ctrl >> (2 * (l & 3)) & 3);
  int n = static_cast<int>(ctrl & 15);
  switch (ctrl & 0x1F0) {
    case 0x100:
      return in + n < 16 ? row + in + n : -1;  // row_shl
    case 0x110:
      return in - n >= 0 ? row + in - n : -1;  // row_shr
    case 0x120:
      return row + ((in - n) & 15);  // row_ror
    case 0x150:
      return row + n;  // row_newbcast (gfx90a on)
  }
  switch (ctrl) {
    case 0x130:
      return l + 1 < 64 ? l + 1 : -1;  // wave_shl:1
    case 0x134:
      return (l + 1) & 63;  // wave_rol:1
    case 0x138:
      return l - 1;  // wave_shr:1
    case 0x13C:
      return (l - 1) & 63;  // wave_ror:1
    case 0x140:
      return row + 15 - in;  // row_mirror
    case 0x141:
      return (l & ~7) + 7 - (l & 7);  // row_half_mirror
    case 0x142:
      return l >= 16 ? row - 1 : -1;  // row_bcast:15: last lane of the row before
    case 0x143:
      return l >= 32 ? 31 : -1;  // row_bcast:31
  }
  fail("DPP control 0x%x is not modelled", ctrl);
}

u64 dpp_valid(const Wave& w, const Inst& i) {
  u64 valid = 0, exec = w.exec();
  for (int l = 0; l < kLanes; l++) {
    int from = dpp_source(i.dpp_ctrl, l);
    if (from >= 0 && (exec >> from & 1)) valid |= 1ull << l;
  }
  return valid;
}

u32 select_bits(u32 x, int sel, bool sext) {
  if (sel < 4) {
    u32 b = x >> (8 * sel) & 0xFF;
    return sext ? static_cast<u32>(static_cast<int8_t>(b)) : b;
  }
  if (sel < 6) {
    u32 h = x >> (16 * (sel - 4)) & 0xFFFF;
    return sext ? static_cast<u32>(static_cast<int16_t>(h)) : h;
  }
  return x;
}

Poison select_poison(const Poison& p, int sel) {
  Poison r;
  if (sel < 4)
    r.b[0] = p.b[sel];
  else if (sel < 6)
    r.b[0] = p.b[2 * (sel - 4)], r.b[1] = p.b[2 * (sel - 4) + 1];
  else
    r = p;
  return r;
}

}  // namespace

u64 active_lanes(const Wave& w, const Inst& i) {
  u64 lanes = w.exec();
  if (!i.dpp) return lanes;
  for (int l = 0; l < kLanes; l++)
    if (!(i.row_mask >> (l / 16) & 1) || !(i.bank_mask >> (l / 4 % 4) & 1)) lanes &= ~(1ull << l);
  if (!i.bound_ctrl) lanes &= dpp_valid(w, i);
  return lanes;
}

const u32* read32_slow(Wave& w, const Inst& i, const Operand& o, int source, u32* tmp, Poison& p) {
  Poison mine;
  switch (o.kind) {
    case Kind::kVgpr: {
      const u32* s = w.v[o.reg];
      if (i.dpp && source == 0) {
        u64 valid = dpp_valid(w, i), lanes = active_lanes(w, i);
        for (int l = 0; l < kLanes; l++) {
          int from = dpp_source(i.dpp_ctrl, l);
          bool ok = valid >> l & 1;
          tmp[l] = ok ? s[from] : 0;  // out of range with bound_ctrl reads 0
          if (!ok) continue;
          if (lanes >> l & 1) w.check_v(o.reg, 1ull << from);
          for (int b = 0; b < 4; b++) mine.b[b] |= (w.vp[o.reg].b[b] >> from & 1) << l;
        }
      } else {
        w.check_v(o.reg, w.exec());
        memcpy(tmp, s, sizeof(u32) * kLanes);
        mine = w.vp[o.reg];
      }
      break;
    }
    case Kind::kSgpr: {
      u32 value = w.get_s(o.reg);
      for (int l = 0; l < kLanes; l++) tmp[l] = value;
      for (int b = 0; b < 4; b++) mine.b[b] = w.sp[o.reg] >> (8 * b) & 0xFF ? kAllLanes : 0;
      break;
    }
    case Kind::kConst:
      for (int l = 0; l < kLanes; l++) tmp[l] = static_cast<u32>(o.bits);
      break;
    case Kind::kScc:
      for (int l = 0; l < kLanes; l++) tmp[l] = w.scc;
      break;
    default:
      fail("operand kind not understood in \"%s\"", i.text);
  }
  int sel = !i.sdwa ? 6 : source == 0 ? i.src0_sel : i.src1_sel;
  if (sel != 6 || o.sext) {
    for (int l = 0; l < kLanes; l++) tmp[l] = select_bits(tmp[l], sel, o.sext);
    mine = select_poison(mine, sel);
  }
  if (o.neg || o.abs) {
    u32 sign = i.entry->lit == Lit::kF16 ? 0x8000 : 0x80000000;
    for (int l = 0; l < kLanes; l++) tmp[l] = ((o.abs ? tmp[l] & ~sign : tmp[l]) ^ (o.neg ? sign : 0));
  }
  p |= mine;
  return tmp;
}

void write_sdwa(Wave& w, const Inst& i, const u32* result, const Poison& p, u64 lanes) {
  int r = i.op[0].reg, sel = i.dst_sel;
  w.check_v_write(r, lanes);
  int first = sel < 4 ? sel : sel < 6 ? 2 * (sel - 4) : 0, count = sel < 4 ? 1 : sel < 6 ? 2 : 4;
  u32 mask = static_cast<u32>((1ull << (8 * count)) - 1) << (8 * first);
  for (int l = 0; l < kLanes; l++) {
    if (!(lanes >> l & 1)) continue;
    u32 placed = result[l] << (8 * first) & mask;
    u32 rest = 0;
    if (i.dst_unused == 2) rest = w.v[r][l] & ~mask;
    if (i.dst_unused == 1 && count < 4) {
      bool negative = result[l] >> (8 * count - 1) & 1;
      u64 above = ~0ull << (8 * (first + count));
      rest = negative ? static_cast<u32>(above) : 0;
    }
    w.v[r][l] = placed | rest;
  }
  u64 any = p.any() & lanes;
  for (int b = 0; b < 4; b++) {
    bool written = b >= first && b < first + count;
    if (!written && i.dst_unused == 2) continue;
    w.vp[r].b[b] = (w.vp[r].b[b] & ~lanes) | (written ? any : 0);
  }
}

void output_modifiers(const Inst& i, u32* result) {
  bool half = i.entry->lit == Lit::kF16;
  for (int l = 0; l < kLanes; l++) {
    float f = half ? half_to_float(static_cast<u16>(result[l])) : f32(result[l]);
    if (i.omod == 1) f *= 2;
    if (i.omod == 2) f *= 4;
    if (i.omod == 3) f /= 2;
    if (i.clamp) f = f > 0 ? (f < 1 ? f : 1) : 0;  // NaN becomes 0 (DX10_CLAMP)
    result[l] = half ? float_to_half(f) : bits(f);
  }
}

void read64(Wave& w, const Inst& i, const Operand& o, u64* out, Unknown64& p) {
  u64 flip = o.neg ? 1ull << 63 : 0, keep = o.abs ? ~(1ull << 63) : ~0ull;
  if (o.kind == Kind::kVgpr) {
    for (int k = 0; k < 2; k++) w.check_v(o.reg + k, w.exec());
    p.low |= w.vp[o.reg].any(), p.high |= w.vp[o.reg + 1].any();
    for (int l = 0; l < kLanes; l++) out[l] = w.v[o.reg][l] | static_cast<u64>(w.v[o.reg + 1][l]) << 32;
  } else if (o.kind == Kind::kSgpr || o.kind == Kind::kConst) {
    u64 value = o.bits;
    if (o.kind == Kind::kSgpr) {
      value = w.get_s(o.reg) | static_cast<u64>(w.get_s(o.reg + 1)) << 32;
      if (w.sp[o.reg]) p.low = kAllLanes;
      if (w.sp[o.reg + 1]) p.high = kAllLanes;
    }
    for (int l = 0; l < kLanes; l++) out[l] = value;
  } else {
    fail("64-bit operand not understood in \"%s\"", i.text);
  }
  if (o.neg || o.abs)
    for (int l = 0; l < kLanes; l++) out[l] = (out[l] & keep) ^ flip;
}

void write64(Wave& w, const Operand& d, const u64* result, const Unknown64& p, u64 lanes, Flow flow) {
  u64 all = p.low | p.high;
  u64 unknown[2] = {flow == Flow::kUp || flow == Flow::kStraight ? p.low : all,
                    flow == Flow::kDown || flow == Flow::kStraight ? p.high : all};
  for (int k = 0; k < 2; k++) {
    w.check_v_write(d.reg + k, lanes);
    for (int l = 0; l < kLanes; l++)
      if (lanes >> l & 1) w.v[d.reg + k][l] = static_cast<u32>(result[l] >> (32 * k));
    set_poison(w, d.reg + k, Poison::all(unknown[k]), lanes, Spread::kAll);
  }
}

void write_mask(Wave& w, int sgpr, u64 mask, u64 poison) {
  w.set_s(sgpr, static_cast<u32>(mask), static_cast<u32>(poison));
  w.set_s(sgpr + 1, static_cast<u32>(mask >> 32), static_cast<u32>(poison >> 32));
}

u64 lane_mask_source(Wave& w, const Operand& o, u64& poison) {
  if (o.kind == Kind::kConst) return o.bits;
  if (o.kind != Kind::kSgpr) fail("lane mask is no scalar register");
  u64 v = w.get_s(o.reg) | static_cast<u64>(w.get_s(o.reg + 1)) << 32;
  poison |= w.sp64(o.reg);
  return v;
}

}  // namespace hipsim
