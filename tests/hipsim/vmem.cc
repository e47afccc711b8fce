// Vector memory: global, flat and buffer loads, stores, atomics, and loads that go straight to LDS.
// Loads and atomics with a result arrive at a sufficient s_waitcnt vmcnt; stores take effect at once.
#include "lanes.h"
#include "memory.h"
#include "opcodes.h"

namespace hipsim {
namespace {

// Where the lanes of an instruction go.
struct Access {
  u64 lanes = 0;
  u64 address[kLanes];
  // Buffers: offset checked against num_records, unsigned and without wrap-around, each dword on its own. LLVM:
  // AMDGPUUsage, "buffer out of bounds"; CDNA ISA, "range checking" (raw buffers, soffset included).
  bool buffer = false;
  u64 offset[kLanes];
  u64 records = 0;
  bool in_range(int l, u32 at, u32 bytes) const { return !buffer || offset[l] + at + bytes <= records; }
};

void unknown_lanes(u64 lanes, const char* what) {
  if (lanes) fail("lane %d: %s that nobody wrote", __builtin_ctzll(lanes), what);
}

// vaddr, saddr at operands k, k + 1. `saddr` may be "off" or absent (flat).
void global_address(Wave& w, const Inst& i, int vaddr, int saddr, Access& a) {
  const Operand& v = i.op[vaddr];
  a.lanes = w.exec();
  if (i.segment == 1) fail("scratch memory is used");
  bool scalar = saddr < i.ops && i.op[saddr].kind == Kind::kSgpr;
  u64 base = 0;
  if (scalar) {
    int r = i.op[saddr].reg;
    base = w.get_s(r) | static_cast<u64>(w.get_s(r + 1)) << 32;
    if (w.sp64(r)) fail("address in s[%d:%d] that nobody wrote", r, r + 1);
  }
  if (v.kind != Kind::kVgpr) fail("address operand not understood");
  w.check_v(v.reg, a.lanes);
  unknown_lanes(w.vp[v.reg].any() & a.lanes, "address");
  const u32* lo = w.v[v.reg];
  if (scalar) {
    for (int l = 0; l < kLanes; l++) a.address[l] = base + lo[l] + static_cast<u64>(static_cast<i64>(i.offset));
  } else {
    w.check_v(v.reg + 1, a.lanes);
    unknown_lanes(w.vp[v.reg + 1].any() & a.lanes, "address");
    const u32* hi = w.v[v.reg + 1];
    for (int l = 0; l < kLanes; l++)
      a.address[l] = (lo[l] | static_cast<u64>(hi[l]) << 32) + static_cast<u64>(static_cast<i64>(i.offset));
  }
}

// vaddr (or off), srsrc, soffset at operands k...
void buffer_address(Wave& w, const Inst& i, int vaddr, Access& a) {
  if (i.idxen) fail("buffer access with idxen is not modelled");
  a.lanes = w.exec();
  a.buffer = true;
  const Operand& rsrc = i.op[vaddr + 1];
  u32 d[4];
  for (int k = 0; k < 4; k++) {
    d[k] = w.get_s(rsrc.reg + k);
    if (w.sp[rsrc.reg + k]) fail("buffer descriptor word %d that nobody wrote", k);
  }
  // The stride (bits 16 to 29) and the cache's swizzle (bit 30) move nothing without an index and swizzled addressing,
  // and num_records counts bytes then.
  if (d[1] >> 31 || d[3] >> 23 & 1) fail("buffer descriptors with swizzle or add_tid_enable are not modelled");
  u64 base = d[0] | static_cast<u64>(d[1] & 0xFFFF) << 32;
  a.records = d[2];
  const Operand& so = i.op[vaddr + 2];
  u64 soffset = so.bits;
  if (so.kind == Kind::kSgpr) {
    soffset = w.get_s(so.reg);
    if (w.sp[so.reg]) fail("buffer offset s%d that nobody wrote", so.reg);
  }
  const Operand& v = i.op[vaddr];
  if (i.offen) {
    w.check_v(v.reg, a.lanes);
    unknown_lanes(w.vp[v.reg].any() & a.lanes, "buffer offset");
  }
  for (int l = 0; l < kLanes; l++) {
    a.offset[l] = (i.offen ? w.v[v.reg][l] : 0) + static_cast<u64>(static_cast<u32>(i.offset)) + soffset;
    a.address[l] = base + a.offset[l];
  }
}

// Reads `bytes` (1, 2 or a multiple of 4) per lane into `p`. Out-of-range parts of buffers read 0.
void gather(Wave& w, const Access& a, u32 bytes, bool sign, Pending& p) {
  int device = w.wg->launch->device;
  AccessCache cache;
  u32 words = (bytes + 3) / 4;
  for (u32 k = 0; k < words; k++) p.poison[k] = {};
  auto missing_bytes = [&](int l, u32 first_word, u32 mask) {
    for (u32 b = 0; mask; b++, mask >>= 1)
      if (mask & 1) p.poison[first_word + b / 4].b[b % 4] |= 1ull << l;
  };
  for (int l = 0; l < kLanes; l++) {
    if (!(a.lanes >> l & 1)) continue;
    if (bytes < 4) {
      u32 value = 0;
      if (a.in_range(l, 0, bytes)) {
        memcpy(&value, check_access(device, a.address[l], bytes, false, cache, l), bytes);
        missing_bytes(l, 0, unwritten(a.address[l], bytes));
      }
      if (sign)
        value =
            bytes == 1 ? static_cast<u32>(static_cast<int8_t>(value)) : static_cast<u32>(static_cast<int16_t>(value));
      if (sign && p.poison[0].b[bytes - 1] >> l & 1) missing_bytes(l, 0, 15);
      p.lane(0)[l] = value;
    } else if (a.in_range(l, 0, bytes)) {
      const u8* from = check_access(device, a.address[l], bytes, false, cache, l);
      u32 value[4];
      memcpy(value, from, bytes);
      for (u32 k = 0; k < words; k++) p.lane(static_cast<int>(k))[l] = value[k];
      missing_bytes(l, 0, unwritten(a.address[l], bytes));
    } else {
      for (u32 k = 0; k < words; k++) {
        u32 value = 0;
        if (a.in_range(l, 4 * k, 4)) {
          memcpy(&value, check_access(device, a.address[l] + 4 * k, 4, false, cache, l), 4);
          missing_bytes(l, k, unwritten(a.address[l] + 4 * k, 4));
        }
        p.lane(static_cast<int>(k))[l] = value;
      }
    }
  }
}

void mark_destination(Wave& w, const Pending& p) {
  for (int k = 0; k < p.dwords; k++) {
    int r = p.reg + k;
    if (w.pend[r] & p.exec)
      for (int n = 0; n < w.lgkm.size(); n++) {
        Pending& q = w.lgkm.at(n);
        if (q.type == Pending::kLdsRead && r >= q.reg && r < q.reg + q.dwords) w.check_v_write(r, p.exec);
      }
    w.pend[r] |= p.exec;
  }
}

// entry->arg: bytes | flags
enum { kSigned = 0x100, kLow = 0x200, kHigh = 0x400 };
u32 bytes_of(const Inst& i) { return i.entry->arg & 0xFF; }

void start_load(Wave& w, const Inst& i, const Access& a) {
  Pending& p = w.vm.push();
  u32 bytes = bytes_of(i);
  p.type = Pending::kLoad;
  p.dwords = static_cast<u8>((bytes + 3) / 4), p.reg = i.op[0].reg, p.pc = i.pc, p.exec = a.lanes;
  gather(w, a, bytes, i.entry->arg & kSigned, p);
  p.half_lo = i.entry->arg & kLow, p.half_hi = i.entry->arg & kHigh;
  if (p.half_hi)
    for (int l = 0; l < kLanes; l++) p.lane(0)[l] <<= 16;
  if (p.half_hi) p.poison[0].b[2] = p.poison[0].b[0], p.poison[0].b[3] = p.poison[0].b[1];
  mark_destination(w, p);
}

// Data goes to LDS at M0 + instruction offset + lane * size; lanes out of range write 0, inactive lanes nothing.
void start_direct_load(Wave& w, const Inst& i, const Access& a) {
  u32 bytes = bytes_of(i);
  if (w.sp[kM0]) fail("M0 (the LDS address) that nobody wrote");
  u32 base = w.get_s(kM0) + static_cast<u32>(i.offset), step = bytes < 4 ? 4 : bytes;
  if (w.wg->launch->kernel->module->arch == "gfx942" && bytes > 4)
    fail("gfx942 has no direct-to-LDS load of more than 4 bytes");
  if (config().strict_war) {  // the LDS unit and the memory unit keep no order between them, even within a wave
    for (int n = 0; n < w.lgkm.size(); n++) {
      const Pending& q = w.lgkm.at(n);
      if (q.type != Pending::kLdsRead && q.type != Pending::kLdsWrite) continue;
      auto inside = [&](u32 at) { return q.bytes && at + q.bytes > base && at < base + kLanes * step; };
      for (int l = 0; l < kLanes; l++)
        if ((q.exec >> l & 1) && (inside(q.address[l]) || (q.two && inside(q.address2[l]))))
          fail(
              "direct-to-LDS load over bytes at 0x%x that the LDS access at pc 0x%x of this wave may not have reached "
              "yet",
              q.address[l], q.pc);
    }
  }
  Pending& p = w.vm.push();
  p.type = Pending::kDirectLds;
  p.bytes = static_cast<u8>(step), p.pc = i.pc, p.exec = a.lanes;
  gather(w, a, bytes, i.entry->arg & kSigned, p);
  for (int l = 0; l < kLanes; l++) {
    if (!(a.lanes >> l & 1)) continue;
    p.address[l] = base + static_cast<u32>(l) * step;
    w.wg->lds_touch(w.id, p.address[l], step, true, l);
    for (u32 b = 0; b < step; b++) w.wg->lds_state[p.address[l] + b] |= 2;
  }
}

void store(Wave& w, const Inst& i, const Operand& data, const Access& a) {
  u32 bytes = bytes_of(i), words = (bytes + 3) / 4;
  int device = w.wg->launch->device;
  for (u32 k = 0; k < words; k++) w.check_v(data.reg + static_cast<int>(k), a.lanes);
  AccessCache cache;
  int shift = i.entry->arg & kHigh ? 16 : 0;
  auto put = [&](int l, u32 word, u32 n) {
    u32 value = w.v[data.reg + static_cast<int>(word)][l] >> shift;
    const Poison& p = w.vp[data.reg + static_cast<int>(word)];
    for (u32 b = 0; b < n; b++)
      if (p.b[b + static_cast<u32>(shift / 8)] >> l & 1)
        fail("lane %d: byte %u of v%u, which nobody wrote, is stored to memory", l, b, data.reg + word);
    u64 at = a.address[l] + 4 * word;
    memcpy(check_access(device, at, n, true, cache, l), &value, n);
    set_written(at, n);
  };
  for (int l = 0; l < kLanes; l++) {
    if (!(a.lanes >> l & 1)) continue;
    for (u32 k = 0; k < words; k++) {
      u32 n = std::min(bytes - 4 * k, 4u);
      if (a.in_range(l, 4 * k, n)) put(l, k, n);
    }
  }
  Pending& p = w.vm.push();
  p.type = Pending::kStore, p.pc = i.pc, p.exec = 0;
}

// ---- atomics --------------------------------------------------------------------------------------------------------
enum Atomic {
  kAdd,
  kSub,
  kSwap,
  kCmpSwap,
  kSmin,
  kSmax,
  kUmin,
  kUmax,
  kAnd,
  kOr,
  kXor,
  kAddF32,
  kAddF64,
  kPkF16,
  kPkBf16
};

u64 apply(Atomic op, u64 old, u64 x, u64 compare, bool wide) {
  auto s = [&](u64 v) { return wide ? static_cast<i64>(v) : static_cast<i64>(static_cast<i32>(v)); };
  switch (op) {
    case kAdd:
      return old + x;
    case kSub:
      return old - x;
    case kSwap:
      return x;
    case kCmpSwap:
      return old == compare ? x : old;
    case kSmin:
      return s(old) < s(x) ? old : x;
    case kSmax:
      return s(old) > s(x) ? old : x;
    case kUmin:
      return old < x ? old : x;
    case kUmax:
      return old > x ? old : x;
    case kAnd:
      return old & x;
    case kOr:
      return old | x;
    case kXor:
      return old ^ x;
    case kAddF32:
      return bits(f32(static_cast<u32>(old)) + f32(static_cast<u32>(x)));
    case kAddF64:
      return bits(f64(old) + f64(x));
    case kPkF16:
    case kPkBf16: {
      u32 r = 0;
      for (int h = 0; h < 32; h += 16) {
        u16 a = static_cast<u16>(old >> h), b = static_cast<u16>(x >> h);
        u16 sum = op == kPkF16 ? float_to_half(half_to_float(a) + half_to_float(b))
                               : float_to_bf16(bf16_to_float(a) + bf16_to_float(b));
        r |= static_cast<u32>(sum) << h;
      }
      return r;
    }
  }
  return 0;
}

template <class T>
T atomically(u8* at, Atomic op, u64 x, u64 compare) {
  T* p = reinterpret_cast<T*>(at);
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, static_cast<T>(apply(op, old, x, compare, sizeof(T) == 8)), false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
  }
  return old;
}

void atomic(Wave& w, const Inst& i, const Operand& data, const Access& a, int result) {
  auto op = static_cast<Atomic>(i.entry->arg & 31);
  u32 bytes = i.entry->arg >> 8, words = bytes / 4;
  int device = w.wg->launch->device;
  u32 regs = words * (op == kCmpSwap ? 2 : 1);
  for (u32 k = 0; k < regs; k++) {
    w.check_v(data.reg + static_cast<int>(k), a.lanes);
    unknown_lanes(w.vp[data.reg + k].any() & a.lanes, "operand of an atomic");
  }
  Pending& p = w.vm.push();
  p.type = result >= 0 ? Pending::kLoad : Pending::kStore;
  p.pc = i.pc, p.exec = result >= 0 ? a.lanes : 0;
  for (u32 k = 0; k < words; k++) p.poison[k] = {};
  AccessCache cache;
  for (int l = 0; l < kLanes; l++) {
    if (!(a.lanes >> l & 1)) continue;
    auto value = [&](u32 first) {
      u64 v = w.v[data.reg + first][l];
      return words == 2 ? v | static_cast<u64>(w.v[data.reg + first + 1][l]) << 32 : v;
    };
    u64 old = 0;
    if (a.in_range(l, 0, bytes)) {
      if (a.address[l] % bytes) fail("lane %d: atomic at an unaligned address", l);
      u8* at = check_access(device, a.address[l], bytes, true, cache, l);
      if (unwritten(a.address[l], bytes)) fail("lane %d: atomic on memory that nobody wrote", l);
      u64 compare = op == kCmpSwap ? value(words) : 0;
      old = words == 2 ? atomically<u64>(at, op, value(0), compare) : atomically<u32>(at, op, value(0), compare);
    }
    for (u32 k = 0; k < words; k++) p.lane(static_cast<int>(k))[l] = static_cast<u32>(old >> (32 * k));
  }
  if (result >= 0) {
    p.reg = i.op[result].reg, p.dwords = static_cast<u8>(words);
    mark_destination(w, p);
  }
}

// ---- forms ----------------------------------------------------------------------------------------------------------
void global_load(Wave& w, const Inst& i) {
  Access a;
  global_address(w, i, 1, 2, a);
  start_load(w, i, a);
}
void global_load_lds(Wave& w, const Inst& i) {
  Access a;
  global_address(w, i, 0, 1, a);
  start_direct_load(w, i, a);
}
void global_store(Wave& w, const Inst& i) {
  Access a;
  global_address(w, i, 0, 2, a);
  store(w, i, i.op[1], a);
}
void global_atomic(Wave& w, const Inst& i) {
  Access a;
  int first = i.returns ? 1 : 0;
  global_address(w, i, first, first + 2, a);
  atomic(w, i, i.op[first + 1], a, i.returns ? 0 : -1);
}
void buffer_load(Wave& w, const Inst& i) {
  Access a;
  buffer_address(w, i, i.lds ? 0 : 1, a);
  if (i.lds)
    start_direct_load(w, i, a);
  else
    start_load(w, i, a);
}
void buffer_store(Wave& w, const Inst& i) {
  Access a;
  buffer_address(w, i, 1, a);
  store(w, i, i.op[0], a);
}
void buffer_atomic(Wave& w, const Inst& i) {
  Access a;
  buffer_address(w, i, 1, a);
  atomic(w, i, i.op[0], a, i.returns ? 0 : -1);
}
// Flat accesses count on both counters; only global addresses are modelled, and the data is kept until both waits.
void flat_both(Wave& w, const Inst& i) {
  Pending& p = w.lgkm.push();
  p.type = Pending::kScalar, p.dwords = 0, p.pc = i.pc, p.flat = true, p.exec = 0;
  w.vm.at(w.vm.size() - 1).flat = true;
}
void flat_load(Wave& w, const Inst& i) {
  global_load(w, i);
  flat_both(w, i);
}
void flat_store(Wave& w, const Inst& i) {
  global_store(w, i);
  flat_both(w, i);
}
void flat_atomic(Wave& w, const Inst& i) {
  global_atomic(w, i);
  flat_both(w, i);
}
void ignore(Wave&, const Inst&) {}

#define LOADS(name, arg)                                                                                \
  {"global_load_" name, global_load, Lit::kB32, arg}, {"flat_load_" name, flat_load, Lit::kB32, arg}, { \
    "buffer_load_" name, buffer_load, Lit::kB32, arg                                                    \
  }
#define STORES(name, arg)                                                                                   \
  {"global_store_" name, global_store, Lit::kB32, arg}, {"flat_store_" name, flat_store, Lit::kB32, arg}, { \
    "buffer_store_" name, buffer_store, Lit::kB32, arg                                                      \
  }
#define ATOMICS(name, op, bytes)                                          \
  {"global_atomic_" name, global_atomic, Lit::kB32, (op) | (bytes) << 8}, \
      {"flat_atomic_" name, flat_atomic, Lit::kB32, (op) | (bytes) << 8}, \
      {"buffer_atomic_" name, buffer_atomic, Lit::kB32, (op) | (bytes) << 8}

const OpEntry kTable[] = {
    LOADS("ubyte", 1),
    LOADS("sbyte", 1 | kSigned),
    LOADS("ushort", 2),
    LOADS("sshort", 2 | kSigned),
    LOADS("dword", 4),
    LOADS("dwordx2", 8),
    LOADS("dwordx3", 12),
    LOADS("dwordx4", 16),
    LOADS("ubyte_d16", 1 | kLow),
    LOADS("ubyte_d16_hi", 1 | kHigh),
    LOADS("sbyte_d16", 1 | kSigned | kLow),
    LOADS("sbyte_d16_hi", 1 | kSigned | kHigh),
    LOADS("short_d16", 2 | kLow),
    LOADS("short_d16_hi", 2 | kHigh),
    STORES("byte", 1),
    STORES("short", 2),
    STORES("dword", 4),
    STORES("dwordx2", 8),
    STORES("dwordx3", 12),
    STORES("dwordx4", 16),
    STORES("byte_d16_hi", 1 | kHigh),
    STORES("short_d16_hi", 2 | kHigh),
    {"global_load_lds_ubyte", global_load_lds, Lit::kB32, 1},
    {"global_load_lds_ushort", global_load_lds, Lit::kB32, 2},
    {"global_load_lds_sbyte", global_load_lds, Lit::kB32, 1 | kSigned},
    {"global_load_lds_sshort", global_load_lds, Lit::kB32, 2 | kSigned},
    {"global_load_lds_dword", global_load_lds, Lit::kB32, 4},
    {"global_load_lds_dwordx3", global_load_lds, Lit::kB32, 12},
    {"global_load_lds_dwordx4", global_load_lds, Lit::kB32, 16},
    ATOMICS("add", kAdd, 4),
    ATOMICS("sub", kSub, 4),
    ATOMICS("swap", kSwap, 4),
    ATOMICS("cmpswap", kCmpSwap, 4),
    ATOMICS("smin", kSmin, 4),
    ATOMICS("smax", kSmax, 4),
    ATOMICS("umin", kUmin, 4),
    ATOMICS("umax", kUmax, 4),
    ATOMICS("and", kAnd, 4),
    ATOMICS("or", kOr, 4),
    ATOMICS("xor", kXor, 4),
    ATOMICS("add_x2", kAdd, 8),
    ATOMICS("swap_x2", kSwap, 8),
    ATOMICS("cmpswap_x2", kCmpSwap, 8),
    ATOMICS("add_f32", kAddF32, 4),
    ATOMICS("add_f64", kAddF64, 8),
    ATOMICS("pk_add_f16", kPkF16, 4),
    ATOMICS("pk_add_bf16", kPkBf16, 4),
    {"buffer_wbl2", ignore},
    {"buffer_inv", ignore},
    {"buffer_wbinvl1", ignore},  // caches are not modelled
};

}  // namespace

OpTable vmem_ops() { return {kTable, sizeof kTable / sizeof *kTable}; }

}  // namespace hipsim
