// LDS. Reads arrive and writes count as done at a sufficient s_waitcnt lgkmcnt. A wave sees its own earlier writes at
// once (the LDS unit keeps a wave's order); other waves need a wait and a barrier, which Workgroup::lds_touch checks.
#include "lanes.h"
#include "opcodes.h"

namespace hipsim {
namespace {

enum { kSigned = 0x100, kLow = 0x200, kHigh = 0x400, kStride64 = 0x800 };
u32 bytes_of(const Inst& i) { return i.entry->arg & 0xFF; }

const u32* addresses(Wave& w, const Operand& o, u64 lanes) {
  if (o.kind != Kind::kVgpr) fail("LDS address operand not understood");
  w.check_v(o.reg, lanes);
  if (u64 bad = w.vp[o.reg].any() & lanes) fail("lane %d: LDS address that nobody wrote", __builtin_ctzll(bad));
  return w.v[o.reg];
}

Pending& begin(Wave& w, const Inst& i, Pending::Type type, u32 bytes) {
  Pending& p = w.lgkm.push();
  p.type = type, p.bytes = static_cast<u8>(bytes), p.pc = i.pc, p.exec = w.exec();
  for (Poison& q : p.poison) q = {};
  return p;
}

void mark_destination(Wave& w, Pending& p, int reg, u32 dwords) {
  p.reg = static_cast<u16>(reg), p.dwords = static_cast<u8>(dwords);
  for (u32 k = 0; k < dwords; k++) {
    int r = reg + static_cast<int>(k);
    if (w.pend[r] & p.exec)
      for (int n = 0; n < w.vm.size(); n++) {
        Pending& q = w.vm.at(n);
        if (q.type == Pending::kLoad && r >= q.reg && r < q.reg + q.dwords) w.check_v_write(r, p.exec);
      }
    w.pend[r] |= p.exec;
  }
}

void fetch(Wave& w, u32 address, u32 bytes, int l, Pending& p, u32 word) {
  Workgroup& g = *w.wg;
  g.lds_touch(w.id, address, bytes, false, l);
  u32 value[4] = {};
  memcpy(value, &g.lds[address], bytes);
  for (u32 k = 0; k < (bytes + 3) / 4; k++) p.lane(static_cast<int>(word + k))[l] = value[k];
  for (u32 b = 0; b < bytes; b++)
    p.poison[word + b / 4].b[b % 4] |= static_cast<u64>(g.lds_state[address + b] & 1) << l;
}

void read(Wave& w, const Inst& i) {
  u32 bytes = bytes_of(i);
  const u32* at = addresses(w, i.op[1], w.exec());
  Pending& p = begin(w, i, Pending::kLdsRead, bytes);
  for (int l = 0; l < kLanes; l++) {
    if (!(p.exec >> l & 1)) continue;
    p.address[l] = at[l] + static_cast<u32>(i.offset);
    fetch(w, p.address[l], bytes, l, p, 0);
    u32& v = p.lane(0)[l];
    if (i.entry->arg & kSigned) {
      v = bytes == 1 ? static_cast<u32>(static_cast<int8_t>(v)) : static_cast<u32>(static_cast<int16_t>(v));
      if (p.poison[0].b[bytes - 1] >> l & 1)
        for (u64& b : p.poison[0].b) b |= 1ull << l;
    }
    if (i.entry->arg & kHigh) v <<= 16;
  }
  if (i.entry->arg & kHigh) p.poison[0].b[2] = p.poison[0].b[0], p.poison[0].b[3] = p.poison[0].b[1];
  p.half_lo = i.entry->arg & kLow, p.half_hi = i.entry->arg & kHigh;
  mark_destination(w, p, i.op[0].reg, (bytes + 3) / 4);
}

u32 second_offset(const Inst& i, int which) {
  u32 o = which ? i.raw[0] >> 8 & 255 : i.raw[0] & 255;
  return o * bytes_of(i) * (i.entry->arg & kStride64 ? 64 : 1);
}

void read2(Wave& w, const Inst& i) {
  u32 bytes = bytes_of(i);
  const u32* at = addresses(w, i.op[1], w.exec());
  Pending& p = begin(w, i, Pending::kLdsRead, bytes);
  p.two = true;
  for (int l = 0; l < kLanes; l++) {
    if (!(p.exec >> l & 1)) continue;
    p.address[l] = at[l] + second_offset(i, 0), p.address2[l] = at[l] + second_offset(i, 1);
    fetch(w, p.address[l], bytes, l, p, 0);
    fetch(w, p.address2[l], bytes, l, p, bytes / 4);
  }
  mark_destination(w, p, i.op[0].reg, bytes / 2);
}

void put(Wave& w, u32 address, u32 bytes, int l, int reg, int shift) {
  Workgroup& g = *w.wg;
  g.lds_touch(w.id, address, bytes, true, l);
  for (u32 k = 0; k < (bytes + 3) / 4; k++) {
    u32 value = w.v[reg + static_cast<int>(k)][l] >> shift, n = std::min(bytes - 4 * k, 4u);
    memcpy(&g.lds[address + 4 * k], &value, n);
    for (u32 b = 0; b < n; b++)
      g.lds_state[address + 4 * k + b] = w.vp[reg + static_cast<int>(k)].b[b + static_cast<u32>(shift / 8)] >> l & 1;
  }
}

void write(Wave& w, const Inst& i) {
  u32 bytes = bytes_of(i);
  const u32* at = addresses(w, i.op[0], w.exec());
  int reg = i.op[1].reg;
  for (u32 k = 0; k < (bytes + 3) / 4; k++) w.check_v(reg + static_cast<int>(k), w.exec());
  Pending& p = begin(w, i, Pending::kLdsWrite, bytes);
  for (int l = 0; l < kLanes; l++) {
    if (!(p.exec >> l & 1)) continue;
    p.address[l] = at[l] + static_cast<u32>(i.offset);
    put(w, p.address[l], bytes, l, reg, i.entry->arg & kHigh ? 16 : 0);
  }
}

void write2(Wave& w, const Inst& i) {
  u32 bytes = bytes_of(i);
  const u32* at = addresses(w, i.op[0], w.exec());
  for (int o = 1; o <= 2; o++)
    for (u32 k = 0; k < bytes / 4; k++) w.check_v(i.op[o].reg + static_cast<int>(k), w.exec());
  Pending& p = begin(w, i, Pending::kLdsWrite, bytes);
  p.two = true;
  for (int l = 0; l < kLanes; l++) {
    if (!(p.exec >> l & 1)) continue;
    p.address[l] = at[l] + second_offset(i, 0), p.address2[l] = at[l] + second_offset(i, 1);
    put(w, p.address[l], bytes, l, i.op[1].reg, 0);
    put(w, p.address2[l], bytes, l, i.op[2].reg, 0);
  }
}

// ds_read_b*_tr_b*: in every group of 16 lanes the data is 16 columns wide; lane i receives column i. Notes on gfx950,
// section 2.3, give the 8-bit form; the others follow the same picture: a row is the elements of consecutive lanes.
void read_transposed(Wave& w, const Inst& i, u32 element_bits) {
  u32 bytes = bytes_of(i), words = bytes / 4, elements = 8 * bytes / element_bits;
  if (w.exec() != kAllLanes) fail("ds_read_tr with inactive lanes: the effect is not established");
  const u32* at = addresses(w, i.op[1], w.exec());
  Pending raw;
  for (Poison& q : raw.poison) q = {};
  Pending& p = begin(w, i, Pending::kLdsRead, bytes);
  for (int l = 0; l < kLanes; l++) {
    p.address[l] = at[l] + static_cast<u32>(i.offset);
    if (p.address[l] % 8) fail("lane %d: ds_read_tr at an address that is no multiple of 8", l);
    fetch(w, p.address[l], bytes, l, raw, 0);
  }
  u32 per_row = 16 / elements;  // lanes that hold one row
  auto bit_at = [&](int l, u32 e) {
    return raw.lane(static_cast<int>(e * element_bits / 32))[l] >> (e* element_bits % 32);
  };
  for (int base = 0; base < kLanes; base += 16)
    for (u32 column = 0; column < 16; column++) {
      int l = base + static_cast<int>(column);
      for (u32 k = 0; k < words; k++) p.lane(static_cast<int>(k))[l] = 0;
      for (u32 row = 0; row < elements; row++) {
        int from = base + static_cast<int>(row * per_row + column / elements);
        u32 e = column % elements;
        u64 value = bit_at(from, e);
        u32 low = e * element_bits % 32;
        if (low + element_bits > 32)
          value |= static_cast<u64>(raw.lane(static_cast<int>(e * element_bits / 32 + 1))[from]) << (32 - low);
        value &= (1ull << element_bits) - 1;
        u32 out = row * element_bits;
        u64 placed = value << (out % 32);
        p.lane(static_cast<int>(out / 32))[l] |= static_cast<u32>(placed);
        if (placed >> 32) p.lane(static_cast<int>(out / 32 + 1))[l] |= static_cast<u32>(placed >> 32);
        u64 unknown = 0;
        for (u32 b = e * element_bits / 8; b <= (e * element_bits + element_bits - 1) / 8; b++)
          unknown |= raw.poison[b / 4].b[b % 4] >> from & 1;
        for (u32 b = out / 8; b <= (out + element_bits - 1) / 8; b++) p.poison[b / 4].b[b % 4] |= unknown << l;
      }
    }
  mark_destination(w, p, i.op[0].reg, words);
}

// ---- data exchange through the LDS unit without memory --------------------------------------------------------------
template <class F>
void exchange(Wave& w, const Inst& i, const Operand& data, F source) {  // source(lane) or -1
  u64 lanes = w.exec();
  w.check_v(data.reg, lanes);
  Pending& p = begin(w, i, Pending::kLdsRead, 0);
  for (int l = 0; l < kLanes; l++) {
    p.address[l] = 0;
    int from = source(l);
    bool ok = from >= 0 && (lanes >> from & 1);
    p.lane(0)[l] = ok ? w.v[data.reg][from] : 0;
    for (int b = 0; b < 4; b++) p.poison[0].b[b] |= (ok ? w.vp[data.reg].b[b] >> from & 1 : 0) << l;
  }
  mark_destination(w, p, i.op[0].reg, 1);
}

void bpermute(Wave& w, const Inst& i) {
  const u32* at = addresses(w, i.op[1], w.exec());
  u32 offset = static_cast<u32>(i.offset);
  exchange(w, i, i.op[2], [&](int l) { return static_cast<int>((at[l] + offset) / 4 % 64); });
}

void permute(Wave& w, const Inst& i) {
  const u32* at = addresses(w, i.op[1], w.exec());
  int from[kLanes];
  for (int& f : from) f = -1;
  for (int l = 0; l < kLanes; l++)
    if (w.exec() >> l & 1) from[(at[l] + static_cast<u32>(i.offset)) / 4 % 64] = l;
  exchange(w, i, i.op[2], [&](int l) { return from[l]; });
}

void swizzle(Wave& w, const Inst& i) {
  u32 o = static_cast<u32>(i.offset);
  if (o & 0x8000 && o >= 0xE000) fail("ds_swizzle in FFT mode is not modelled");
  exchange(w, i, i.op[1], [&](int l) {
    if (o & 0x8000) return (l & ~3) + static_cast<int>(o >> (2 * (l & 3)) & 3);
    int in = l & 31;
    return (l & 32) + static_cast<int>(((static_cast<u32>(in) & (o & 31)) | (o >> 5 & 31)) ^ (o >> 10 & 31));
  });
}

// ---- atomics --------------------------------------------------------------------------------------------------------
template <class F>
void atomic(Wave& w, const Inst& i, bool returns, F f) {
  int first = returns ? 1 : 0;
  const u32* at = addresses(w, i.op[first], w.exec());
  int data = i.op[first + 1].reg;
  w.check_v(data, w.exec());
  Pending& p = begin(w, i, returns ? Pending::kLdsRead : Pending::kLdsWrite, 4);
  for (int l = 0; l < kLanes; l++) {
    if (!(p.exec >> l & 1)) continue;
    u32 a = p.address[l] = at[l] + static_cast<u32>(i.offset), old;
    Workgroup& g = *w.wg;
    // Atomics of several waves do not race with each other: they are marked as reads, which plain writes conflict with.
    g.lds_touch(w.id, a, 4, false, l);
    memcpy(&old, &g.lds[a], 4);
    u32 next = f(old, w.v[data][l]);
    memcpy(&g.lds[a], &next, 4);
    for (u32 b = 0; b < 4; b++) {
      p.poison[0].b[b] |= static_cast<u64>(g.lds_state[a + b] & 1) << l;
      g.lds_state[a + b] |= w.vp[data].any() >> l & 1;
    }
    p.lane(0)[l] = old;
  }
  if (returns) mark_destination(w, p, i.op[0].reg, 1);
}

#define ENTRY(name, fn, arg) {name, fn, Lit::kB32, arg}
#define TR(name, bytes, bits) {name, [](Wave& w, const Inst& i) { read_transposed(w, i, bits); }, Lit::kB32, bytes}

const OpEntry kTable[] = {
    ENTRY("ds_read_u8", read, 1),
    ENTRY("ds_read_i8", read, 1 | kSigned),
    ENTRY("ds_read_u16", read, 2),
    ENTRY("ds_read_i16", read, 2 | kSigned),
    ENTRY("ds_read_u8_d16", read, 1 | kLow),
    ENTRY("ds_read_u8_d16_hi", read, 1 | kHigh),
    ENTRY("ds_read_i8_d16", read, 1 | kSigned | kLow),
    ENTRY("ds_read_i8_d16_hi", read, 1 | kSigned | kHigh),
    ENTRY("ds_read_u16_d16", read, 2 | kLow),
    ENTRY("ds_read_u16_d16_hi", read, 2 | kHigh),
    ENTRY("ds_read_b32", read, 4),
    ENTRY("ds_read_b64", read, 8),
    ENTRY("ds_read_b96", read, 12),
    ENTRY("ds_read_b128", read, 16),
    ENTRY("ds_read2_b32", read2, 4),
    ENTRY("ds_read2_b64", read2, 8),
    ENTRY("ds_read2st64_b32", read2, 4 | kStride64),
    ENTRY("ds_read2st64_b64", read2, 8 | kStride64),
    ENTRY("ds_write_b8", write, 1),
    ENTRY("ds_write_b16", write, 2),
    ENTRY("ds_write_b32", write, 4),
    ENTRY("ds_write_b64", write, 8),
    ENTRY("ds_write_b96", write, 12),
    ENTRY("ds_write_b128", write, 16),
    ENTRY("ds_write_b8_d16_hi", write, 1 | kHigh),
    ENTRY("ds_write_b16_d16_hi", write, 2 | kHigh),
    ENTRY("ds_write2_b32", write2, 4),
    ENTRY("ds_write2_b64", write2, 8),
    ENTRY("ds_write2st64_b32", write2, 4 | kStride64),
    ENTRY("ds_write2st64_b64", write2, 8 | kStride64),
    TR("ds_read_b64_tr_b4", 8, 4),
    TR("ds_read_b96_tr_b6", 12, 6),
    TR("ds_read_b64_tr_b8", 8, 8),
    TR("ds_read_b64_tr_b16", 8, 16),
    ENTRY("ds_bpermute_b32", bpermute, 0),
    ENTRY("ds_permute_b32", permute, 0),
    ENTRY("ds_swizzle_b32", swizzle, 0),
#define AT(name, rtn, expr)                                                                                \
  {name, [](Wave& w, const Inst& i) { atomic(w, i, false, [](u32 a, u32 b) -> u32 { return expr; }); }}, { \
    rtn, [](Wave& w, const Inst& i) { atomic(w, i, true, [](u32 a, u32 b) -> u32 { return expr; }); }      \
  }
    AT("ds_add_u32", "ds_add_rtn_u32", a + b),
    AT("ds_sub_u32", "ds_sub_rtn_u32", a - b),
    AT("ds_and_b32", "ds_and_rtn_b32", a& b),
    AT("ds_or_b32", "ds_or_rtn_b32", a | b),
    AT("ds_max_u32", "ds_max_rtn_u32", a > b ? a : b),
    AT("ds_min_u32", "ds_min_rtn_u32", a < b ? a : b),
    AT("ds_max_i32", "ds_max_rtn_i32", static_cast<i32>(a) > static_cast<i32>(b) ? a : b),
    AT("ds_min_i32", "ds_min_rtn_i32", static_cast<i32>(a) < static_cast<i32>(b) ? a : b),
    AT("ds_add_f32", "ds_add_rtn_f32", bits(f32(a) + f32(b))),
};

}  // namespace

OpTable lds_ops() { return {kTable, sizeof kTable / sizeof *kTable}; }

}  // namespace hipsim
