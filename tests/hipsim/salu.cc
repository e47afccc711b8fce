// Scalar ALU, branches, waits (SOP1, SOP2, SOPC, SOPK, SOPP) and scalar loads (SMEM).
#include <algorithm>

#include "lanes.h"
#include "memory.h"
#include "opcodes.h"

namespace hipsim {
namespace {

struct S {
  u64 v = 0;
  u64 p = 0;  // poisoned bits
};

S get32(Wave& w, const Operand& o) {
  switch (o.kind) {
    case Kind::kSgpr:
      return {w.get_s(o.reg), w.sp[o.reg]};
    case Kind::kConst:
      return {static_cast<u32>(o.bits), 0};
    case Kind::kScc:
      return {w.scc, w.scc_poison ? ~0ull : 0};
    default:
      fail("scalar operand not understood");
  }
}
S get64(Wave& w, const Operand& o) {
  if (o.kind == Kind::kConst) return {o.bits, 0};
  if (o.kind != Kind::kSgpr) fail("64-bit scalar operand not understood");
  return {w.get_s(o.reg) | static_cast<u64>(w.get_s(o.reg + 1)) << 32, w.sp64(o.reg)};
}
void put32(Wave& w, const Operand& o, u32 v, u64 p) { w.set_s(o.reg, v, static_cast<u32>(p)); }
void put64(Wave& w, const Operand& o, u64 v, u64 p) {
  w.set_s(o.reg, static_cast<u32>(v), static_cast<u32>(p));
  w.set_s(o.reg + 1, static_cast<u32>(v >> 32), static_cast<u32>(p >> 32));
}
void put_scc(Wave& w, bool v, u64 p) { w.scc = v, w.scc_poison = p != 0; }
u64 all_if(u64 p) { return p ? ~0ull : 0; }

// r = f(a, b); SCC as `scc` says: 0 unchanged, 1 result non-zero
template <class F>
void op2_32(Wave& w, const Inst& i, F f, int scc, bool bitwise = false) {
  S a = get32(w, i.op[1]), b = get32(w, i.op[2]);
  u32 r = f(static_cast<u32>(a.v), static_cast<u32>(b.v));
  u64 p = bitwise ? a.p | b.p : all_if(a.p | b.p);
  put32(w, i.op[0], r, p);
  if (scc) put_scc(w, r != 0, p);
}
template <class F>
void op2_64(Wave& w, const Inst& i, F f, int scc, bool bitwise = false, bool narrow_b = false) {
  S a = get64(w, i.op[1]), b = narrow_b ? get32(w, i.op[2]) : get64(w, i.op[2]);
  u64 r = f(a.v, b.v);
  u64 p = bitwise ? a.p | b.p : all_if(a.p | b.p);
  put64(w, i.op[0], r, p);
  if (scc) put_scc(w, r != 0, p);
}
template <class F>
void carry32(Wave& w, const Inst& i, F f, bool uses_scc = false) {  // f returns result | carry << 32
  S a = get32(w, i.op[1]), b = get32(w, i.op[2]);
  u64 p = all_if(a.p | b.p | (uses_scc && w.scc_poison ? ~0ull : 0));
  u64 r = f(a.v, b.v, static_cast<u64>(w.scc));
  put32(w, i.op[0], static_cast<u32>(r), p);
  put_scc(w, r >> 32 != 0, p);
}
template <class F>
void op1_32(Wave& w, const Inst& i, F f, int scc, bool bitwise = false) {
  S a = get32(w, i.op[1]);
  u32 r = f(static_cast<u32>(a.v));
  u64 p = bitwise ? a.p : all_if(a.p);
  put32(w, i.op[0], r, p);
  if (scc) put_scc(w, r != 0, p);
}
template <class F>
void op1_64(Wave& w, const Inst& i, F f, int scc) {
  S a = get64(w, i.op[1]);
  u64 r = f(a.v);
  put64(w, i.op[0], r, a.p);
  if (scc) put_scc(w, r != 0, a.p);
}
template <class F>
void from64_to32(Wave& w, const Inst& i, F f, int scc) {
  S a = get64(w, i.op[1]);
  u32 r = f(a.v);
  put32(w, i.op[0], r, all_if(a.p));
  if (scc) put_scc(w, r != 0, a.p);
}
template <class F>
void cmp(Wave& w, const Inst& i, F f, bool wide = false) {
  S a = wide ? get64(w, i.op[0]) : get32(w, i.op[0]), b = wide ? get64(w, i.op[1]) : get32(w, i.op[1]);
  put_scc(w, f(a.v, b.v), a.p | b.p);
}
template <class F>
void cmpk(Wave& w, const Inst& i, F f) {
  S a = get32(w, i.op[0]);
  put_scc(w, f(static_cast<u32>(a.v), i.imm), a.p);
}
template <class F>
void saveexec(Wave& w, const Inst& i, F f) {  // d = EXEC; EXEC = f(s, EXEC)
  S a = get64(w, i.op[1]);
  u64 old = w.exec(), next = f(a.v, old);
  put64(w, i.op[0], old, 0);
  write_mask(w, kExec, next, a.p & (old | ~0ull));
  put_scc(w, next != 0, 0);
}
void branch(Wave& w, const Inst& i, bool taken) {
  if (!taken) return;
  if (i.target < 0) fail("branch to an address without an instruction");
  w.ip = w.code + i.target;
}
void branch_scc(Wave& w, const Inst& i, bool when) {
  if (w.scc_poison) fail("branch on SCC that depends on a value nobody wrote");
  branch(w, i, w.scc == when);
}
void branch_vcc(Wave& w, const Inst& i, bool when_nonzero) {
  u64 vcc = w.get_s(kVcc) | static_cast<u64>(w.get_s(kVcc + 1)) << 32;
  if (w.sp64(kVcc)) fail("branch on VCC that depends on a value nobody wrote");
  branch(w, i, (vcc != 0) == when_nonzero);
}
void jump(Wave& w, const S& to) {
  if (to.p) fail("jump to an address that nobody wrote");
  u64 address = to.v;
  const Module& m = *w.wg->launch->kernel->module;
  u64 at = address - m.text_base;
  if (at >= m.text_size || at % 4 || m.code->index_of[at / 4] < 0)
    fail("jump to 0x%llx, where there is no instruction", static_cast<unsigned long long>(address));
  w.ip = w.code + m.code->index_of[at / 4];
}
u64 pc_after(const Wave& w, const Inst& i) { return w.wg->launch->kernel->module->text_base + i.pc + i.size; }

int sx16(u32 v) { return static_cast<int16_t>(v); }
i32 s(u64 v) { return static_cast<i32>(v); }
u32 bfe_mask(u32 n) { return n >= 32 ? ~0u : (1u << n) - 1; }

u32 reverse(u32 a) {
  u32 r = 0;
  for (int k = 0; k < 32; k++) r |= (a >> k & 1) << (31 - k);
  return r;
}
u64 overflowing(i64 r) {  // result, and bit 32 for a signed overflow
  return static_cast<u64>(static_cast<u32>(r)) | static_cast<u64>(r != static_cast<i32>(r)) << 32;
}
template <class I, class U>
I bfe_signed(U a, u64 offset, u64 n) {
  const u64 bits = 8 * sizeof(U);
  if (n == 0) return 0;
  if (offset + n >= bits) return static_cast<I>(a) >> offset;
  return static_cast<I>(a << (bits - offset - n)) >> (bits - n);
}
u64 bfe_u64(u64 a, u64 offset, u64 n) { return a >> offset & (n >= 64 ? ~0ull : (1ull << n) - 1); }
void bitset(Wave& w, const Inst& i, bool set) {
  S d = get32(w, i.op[0]), a = get32(w, i.op[1]);
  u32 bit = 1u << (a.v & 31), old = static_cast<u32>(d.v);
  put32(w, i.op[0], set ? old | bit : old & ~bit, all_if(d.p | a.p));
}
bool known_scc(const Wave& w) {
  if (w.scc_poison) fail("selection by an SCC that depends on a value nobody wrote");
  return w.scc;
}
const Operand& selected(const Wave& w, const Inst& i) { return i.op[known_scc(w) ? 1 : 2]; }
void addk(Wave& w, const Inst& i) {
  S a = get32(w, i.op[0]);
  i64 r = static_cast<i64>(s(a.v)) + sx16(i.imm);
  put32(w, i.op[0], static_cast<u32>(r), all_if(a.p));
  put_scc(w, r != static_cast<i32>(r), a.p);
}
void getreg(Wave& w, const Inst& i) {
  if ((i.raw[0] & 63) != 1) fail("s_getreg of a hardware register other than MODE is not modelled");
  put32(w, i.op[0], w.mode >> (i.raw[0] >> 6 & 31) & bfe_mask((i.raw[0] >> 11 & 31) + 1), 0);
}
// vmcnt in bits 15:14 and 3:0, lgkmcnt in 11:8; the largest value of a field means "do not wait".
void waitcnt(Wave& w, const Inst& i) {
  constexpr int kNone = 1 << 30;
  int vmcnt = static_cast<int>((i.imm & 15) | (i.imm >> 10 & 48)), lgkmcnt = static_cast<int>(i.imm >> 8 & 15);
  w.wait(vmcnt == 63 ? kNone : vmcnt, lgkmcnt == 15 ? kNone : lgkmcnt);
}
void nothing(Wave&, const Inst&) {}

// ---- scalar loads ---------------------------------------------------------------------------------------------------
void scalar_load(Wave& w, const Inst& i, bool buffer) {
  u32 n = i.entry->arg;
  const Operand& base = i.op[1];
  S b = get64(w, base);
  S at;
  if (i.ops > 2 && i.op[2].kind == Kind::kSgpr) at = get32(w, i.op[2]);
  i64 offset = i.offset;
  if (i.ops > 2 && i.op[2].kind == Kind::kConst) offset += static_cast<i32>(static_cast<u32>(i.op[2].bits) << 11) >> 11;
  if (b.p | at.p) fail("scalar load from an address that nobody wrote");
  Pending& p = w.lgkm.push();
  p.type = Pending::kScalar, p.dwords = static_cast<u8>(n), p.reg = i.op[0].reg, p.pc = i.pc, p.exec = 0;
  u64 address = (b.v & 0xFFFFFFFFFFFFull) + at.v + static_cast<u64>(offset);
  address &= ~3ull;
  u64 limit = ~0ull;
  if (buffer) limit = w.get_s(base.reg + 2);
  AccessCache cache;
  for (u32 k = 0; k < n; k++) {
    p.scalar()[k] = 0, p.scalar_poison[k] = 0;
    if (!buffer || at.v + static_cast<u64>(offset) + 4 * k + 4 <= limit) {
      memcpy(&p.scalar()[k], check_access(w.wg->launch->device, address + 4 * k, 4, false, cache, 0), 4);
      u32 missing = unwritten(address + 4 * k, 4);
      for (u32 q = 0; q < 4; q++)
        if (missing >> q & 1) p.scalar_poison[k] |= 0xFFu << (8 * q);
    }
    int r = i.op[0].reg + static_cast<int>(k);
    if (w.spend[r >> 6] >> (r & 63) & 1)
      fail("s%d is loaded twice without a wait in between: the order is not defined", r);
    w.spend[r >> 6] |= 1ull << (r & 63);
  }
}

// MODE register only: the compiler saves and restores it around divisions.
void setreg(Wave& w, const Inst& i, u32 value) {
  u32 id = i.raw[0] & 63, offset = i.raw[0] >> 6 & 31, width = (i.raw[0] >> 11 & 31) + 1;
  if (id != 1) fail("s_setreg of a hardware register other than MODE is not modelled");
  u32 mask = bfe_mask(width) << offset;
  u32 next = (w.mode & ~mask) | (value << offset & mask);
  if ((next & 0xF) != 0) fail("s_setreg: only round-to-nearest is modelled");
  if ((next >> 4 & 15) != 15) fail("s_setreg: flushing denormals is not modelled");
  w.mode = next;
}

#define OP(name, ...) {name, []([[maybe_unused]] Wave& w, [[maybe_unused]] const Inst& i) { __VA_ARGS__; }}
#define OP64(name, ...) {name, [](Wave& w, const Inst& i) { __VA_ARGS__; }, Lit::kB64}
#define F2(expr) [](u32 a, u32 b) -> u32 { return expr; }
#define W2(expr) [](u64 a, u64 b) -> u64 { return expr; }
#define C2(expr) [](u64 a, u64 b) -> bool { return expr; }
#define C3(expr) [](u64 a, u64 b, [[maybe_unused]] u64 c) -> u64 { return expr; }
#define F1(expr) [](u32 a) -> u32 { return expr; }
#define W1(expr) [](u64 a) -> u64 { return expr; }

const OpEntry kTable[] = {
    OP("s_mov_b32", op1_32(w, i, F1(a), 0, true)),
    OP64("s_mov_b64", op1_64(w, i, W1(a), 0)),
    OP("s_not_b32", op1_32(w, i, F1(~a), 1, true)),
    OP64("s_not_b64", op1_64(w, i, W1(~a), 1)),
    OP("s_cmov_b32", if (known_scc(w)) op1_32(w, i, F1(a), 0, true)),
    OP("s_brev_b32", op1_32(w, i, reverse, 0)),
    OP("s_sext_i32_i8", op1_32(w, i, F1(static_cast<u32>(static_cast<int8_t>(a))), 0)),
    OP("s_sext_i32_i16", op1_32(w, i, F1(static_cast<u32>(static_cast<int16_t>(a))), 0)),
    OP("s_abs_i32", op1_32(w, i, F1(s(a) < 0 ? 0u - a : a), 1)),
    OP("s_bcnt0_i32_b32", op1_32(w, i, F1(static_cast<u32>(__builtin_popcount(~a))), 1)),
    OP("s_bcnt1_i32_b32", op1_32(w, i, F1(static_cast<u32>(__builtin_popcount(a))), 1)),
    OP64("s_bcnt1_i32_b64", from64_to32(
                                w, i, [](u64 a) { return static_cast<u32>(__builtin_popcountll(a)); }, 1)),
    OP("s_ff1_i32_b32", op1_32(w, i, F1(a ? static_cast<u32>(__builtin_ctz(a)) : ~0u), 0)),
    OP64("s_ff1_i32_b64", from64_to32(
                              w, i, [](u64 a) { return a ? static_cast<u32>(__builtin_ctzll(a)) : ~0u; }, 0)),
    OP("s_flbit_i32_b32", op1_32(w, i, F1(a ? static_cast<u32>(__builtin_clz(a)) : ~0u), 0)),
    OP64("s_flbit_i32_b64", from64_to32(
                                w, i, [](u64 a) { return a ? static_cast<u32>(__builtin_clzll(a)) : ~0u; }, 0)),
    OP("s_bitset0_b32", bitset(w, i, false)),
    OP("s_bitset1_b32", bitset(w, i, true)),
    OP64("s_and_saveexec_b64", saveexec(w, i, W2(a& b))),
    OP64("s_or_saveexec_b64", saveexec(w, i, W2(a | b))),
    OP64("s_xor_saveexec_b64", saveexec(w, i, W2(a ^ b))),
    OP64("s_andn2_saveexec_b64", saveexec(w, i, W2(a & ~b))),
    OP64("s_andn1_saveexec_b64", saveexec(w, i, W2(~a& b))),
    OP64("s_getpc_b64", put64(w, i.op[0], pc_after(w, i), 0)),
    OP64("s_setpc_b64", jump(w, get64(w, i.op[0]))),
    OP64("s_swappc_b64", S to = get64(w, i.op[1]); put64(w, i.op[0], pc_after(w, i), 0); jump(w, to)),
    OP("s_add_u32", carry32(w, i, C3(a + b))),
    OP("s_addc_u32", carry32(w, i, C3(a + b + c), true)),
    OP("s_sub_u32", carry32(w, i, C3((a - b) & 0x1FFFFFFFFull))),
    OP("s_subb_u32", carry32(w, i, C3((a - b - c) & 0x1FFFFFFFFull), true)),
    OP("s_add_i32", carry32(w, i, [](u64 a, u64 b, u64) { return overflowing(i64{s(a)} + s(b)); })),
    OP("s_sub_i32", carry32(w, i, [](u64 a, u64 b, u64) { return overflowing(i64{s(a)} - s(b)); })),
    OP("s_absdiff_i32", op2_32(w, i, F2(static_cast<u32>(std::abs(static_cast<i64>(s(a)) - s(b)))), 1)),
    OP("s_min_i32", carry32(w, i, C3(s(a) < s(b) ? a | 1ull << 32 : b))),
    OP("s_min_u32", carry32(w, i, C3(a < b ? a | 1ull << 32 : b))),
    OP("s_max_i32", carry32(w, i, C3(s(a) > s(b) ? a | 1ull << 32 : b))),
    OP("s_max_u32", carry32(w, i, C3(a > b ? a | 1ull << 32 : b))),
    OP("s_mul_i32", op2_32(w, i, F2(a* b), 0)),
    OP("s_mul_hi_u32", op2_32(w, i, F2(static_cast<u32>(static_cast<u64>(a) * b >> 32)), 0)),
    OP("s_mul_hi_i32", op2_32(w, i, F2(static_cast<u32>(static_cast<i64>(s(a)) * s(b) >> 32)), 0)),
    OP("s_cselect_b32", S r = get32(w, selected(w, i)); put32(w, i.op[0], static_cast<u32>(r.v), r.p)),
    OP64("s_cselect_b64", S r = get64(w, selected(w, i)); put64(w, i.op[0], r.v, r.p)),
    OP("s_and_b32", op2_32(w, i, F2(a& b), 1, true)),
    OP64("s_and_b64", op2_64(w, i, W2(a& b), 1, true)),
    OP("s_or_b32", op2_32(w, i, F2(a | b), 1, true)),
    OP64("s_or_b64", op2_64(w, i, W2(a | b), 1, true)),
    OP("s_xor_b32", op2_32(w, i, F2(a ^ b), 1, true)),
    OP64("s_xor_b64", op2_64(w, i, W2(a ^ b), 1, true)),
    OP("s_andn2_b32", op2_32(w, i, F2(a & ~b), 1, true)),
    OP64("s_andn2_b64", op2_64(w, i, W2(a & ~b), 1, true)),
    OP("s_orn2_b32", op2_32(w, i, F2(a | ~b), 1, true)),
    OP64("s_orn2_b64", op2_64(w, i, W2(a | ~b), 1, true)),
    OP("s_nand_b32", op2_32(w, i, F2(~(a& b)), 1, true)),
    OP64("s_nand_b64", op2_64(w, i, W2(~(a& b)), 1, true)),
    OP("s_nor_b32", op2_32(w, i, F2(~(a | b)), 1, true)),
    OP64("s_nor_b64", op2_64(w, i, W2(~(a | b)), 1, true)),
    OP("s_xnor_b32", op2_32(w, i, F2(~(a ^ b)), 1, true)),
    OP64("s_xnor_b64", op2_64(w, i, W2(~(a ^ b)), 1, true)),
    OP("s_lshl_b32", op2_32(w, i, F2(a << (b & 31)), 1)),
    OP64("s_lshl_b64", op2_64(w, i, W2(a << (b & 63)), 1, false, true)),
    OP("s_lshr_b32", op2_32(w, i, F2(a >> (b & 31)), 1)),
    OP64("s_lshr_b64", op2_64(w, i, W2(a >> (b & 63)), 1, false, true)),
    OP("s_ashr_i32", op2_32(w, i, F2(static_cast<u32>(s(a) >> (b & 31))), 1)),
    OP64("s_ashr_i64", op2_64(w, i, W2(static_cast<u64>(static_cast<i64>(a) >> (b & 63))), 1, false, true)),
    OP("s_bfm_b32", op2_32(w, i, F2(bfe_mask(a & 31) << (b & 31)), 0)),
    OP("s_bfe_u32", op2_32(w, i, F2(a >> (b & 31) & bfe_mask(b >> 16 & 127)), 1)),
    OP("s_bfe_i32", op2_32(w, i, F2(static_cast<u32>(bfe_signed<i32, u32>(a, b & 31, b >> 16 & 127))), 1)),
    OP64("s_bfe_u64", op2_64(w, i, W2(bfe_u64(a, b & 63, b >> 16 & 127)), 1, false, true)),
    OP64("s_bfe_i64",
         op2_64(w, i, W2(static_cast<u64>(bfe_signed<i64, u64>(a, b & 63, b >> 16 & 127))), 1, false, true)),
    OP("s_lshl1_add_u32", carry32(w, i, C3((a << 1) + b))),
    OP("s_lshl2_add_u32", carry32(w, i, C3((a << 2) + b))),
    OP("s_lshl3_add_u32", carry32(w, i, C3((a << 3) + b))),
    OP("s_lshl4_add_u32", carry32(w, i, C3((a << 4) + b))),
    OP("s_pack_ll_b32_b16", op2_32(w, i, F2((a & 0xFFFF) | b << 16), 0)),
    OP("s_pack_lh_b32_b16", op2_32(w, i, F2((a & 0xFFFF) | (b & 0xFFFF0000)), 0)),
    OP("s_pack_hh_b32_b16", op2_32(w, i, F2(a >> 16 | (b & 0xFFFF0000)), 0)),

    OP("s_movk_i32", put32(w, i.op[0], static_cast<u32>(sx16(i.imm)), 0)),
    OP("s_addk_i32", addk(w, i)),
    OP("s_mulk_i32", S a = get32(w, i.op[0]);
       put32(w, i.op[0], static_cast<u32>(a.v* static_cast<u64>(sx16(i.imm))), all_if(a.p))),
    OP("s_cmovk_i32", if (known_scc(w)) put32(w, i.op[0], static_cast<u32>(sx16(i.imm)), 0)),
    OP("s_cmpk_eq_i32", cmpk(w, i, [](u32 a, u32 k) { return s(a) == sx16(k); })),
    OP("s_cmpk_lg_i32", cmpk(w, i, [](u32 a, u32 k) { return s(a) != sx16(k); })),
    OP("s_cmpk_gt_i32", cmpk(w, i, [](u32 a, u32 k) { return s(a) > sx16(k); })),
    OP("s_cmpk_ge_i32", cmpk(w, i, [](u32 a, u32 k) { return s(a) >= sx16(k); })),
    OP("s_cmpk_lt_i32", cmpk(w, i, [](u32 a, u32 k) { return s(a) < sx16(k); })),
    OP("s_cmpk_le_i32", cmpk(w, i, [](u32 a, u32 k) { return s(a) <= sx16(k); })),
    OP("s_cmpk_eq_u32", cmpk(w, i, [](u32 a, u32 k) { return a == k; })),
    OP("s_cmpk_lg_u32", cmpk(w, i, [](u32 a, u32 k) { return a != k; })),
    OP("s_cmpk_gt_u32", cmpk(w, i, [](u32 a, u32 k) { return a > k; })),
    OP("s_cmpk_ge_u32", cmpk(w, i, [](u32 a, u32 k) { return a >= k; })),
    OP("s_cmpk_lt_u32", cmpk(w, i, [](u32 a, u32 k) { return a < k; })),
    OP("s_cmpk_le_u32", cmpk(w, i, [](u32 a, u32 k) { return a <= k; })),
    OP("s_getreg_b32", getreg(w, i)),
    OP("s_setreg_imm32_b32", setreg(w, i, i.raw[1])),
    OP("s_setreg_b32", setreg(w, i, static_cast<u32>(get32(w, i.op[1]).v))),

    OP("s_cmp_eq_i32", cmp(w, i, C2(a == b))),
    OP("s_cmp_eq_u32", cmp(w, i, C2(a == b))),
    OP("s_cmp_lg_i32", cmp(w, i, C2(a != b))),
    OP("s_cmp_lg_u32", cmp(w, i, C2(a != b))),
    OP("s_cmp_gt_i32", cmp(w, i, C2(s(a) > s(b)))),
    OP("s_cmp_gt_u32", cmp(w, i, C2(a > b))),
    OP("s_cmp_ge_i32", cmp(w, i, C2(s(a) >= s(b)))),
    OP("s_cmp_ge_u32", cmp(w, i, C2(a >= b))),
    OP("s_cmp_lt_i32", cmp(w, i, C2(s(a) < s(b)))),
    OP("s_cmp_lt_u32", cmp(w, i, C2(a < b))),
    OP("s_cmp_le_i32", cmp(w, i, C2(s(a) <= s(b)))),
    OP("s_cmp_le_u32", cmp(w, i, C2(a <= b))),
    OP64("s_cmp_eq_u64", cmp(w, i, C2(a == b), true)),
    OP64("s_cmp_lg_u64", cmp(w, i, C2(a != b), true)),
    OP("s_bitcmp0_b32", cmp(w, i, C2(!(a >> (b & 31) & 1)))),
    OP("s_bitcmp1_b32", cmp(w, i, C2(a >> (b & 31) & 1))),

    OP("s_branch", branch(w, i, true)),
    OP("s_cbranch_scc0", branch_scc(w, i, false)),
    OP("s_cbranch_scc1", branch_scc(w, i, true)),
    OP("s_cbranch_vccz", branch_vcc(w, i, false)),
    OP("s_cbranch_vccnz", branch_vcc(w, i, true)),
    OP("s_cbranch_execz", branch(w, i, w.exec() == 0)),
    OP("s_cbranch_execnz", branch(w, i, w.exec() != 0)),
    OP("s_waitcnt", waitcnt(w, i)),
    OP("s_barrier", w.at_barrier = true),
    OP("s_endpgm", w.done = true),
    OP("s_sleep", w.yield = true),
    OP("s_trap", fail("s_trap: the kernel stops itself")),
    {"s_nop", nothing},
    {"s_setprio", nothing},
    {"s_sethalt", nothing},
    {"s_inst_prefetch", nothing},
    {"s_icache_inv", nothing},
    {"s_dcache_wb", nothing},
    {"s_dcache_inv", nothing},
    {"s_load_dword", [](Wave& w, const Inst& i) { scalar_load(w, i, false); }, Lit::kB32, 1},
    {"s_load_dwordx2", [](Wave& w, const Inst& i) { scalar_load(w, i, false); }, Lit::kB32, 2},
    {"s_load_dwordx4", [](Wave& w, const Inst& i) { scalar_load(w, i, false); }, Lit::kB32, 4},
    {"s_load_dwordx8", [](Wave& w, const Inst& i) { scalar_load(w, i, false); }, Lit::kB32, 8},
    {"s_load_dwordx16", [](Wave& w, const Inst& i) { scalar_load(w, i, false); }, Lit::kB32, 16},
    {"s_buffer_load_dword", [](Wave& w, const Inst& i) { scalar_load(w, i, true); }, Lit::kB32, 1},
    {"s_buffer_load_dwordx2", [](Wave& w, const Inst& i) { scalar_load(w, i, true); }, Lit::kB32, 2},
    {"s_buffer_load_dwordx4", [](Wave& w, const Inst& i) { scalar_load(w, i, true); }, Lit::kB32, 4},
    {"s_buffer_load_dwordx8", [](Wave& w, const Inst& i) { scalar_load(w, i, true); }, Lit::kB32, 8},
    {"s_buffer_load_dwordx16", [](Wave& w, const Inst& i) { scalar_load(w, i, true); }, Lit::kB32, 16},
};

}  // namespace

OpTable salu_ops() { return {kTable, sizeof kTable / sizeof *kTable}; }

}  // namespace hipsim
