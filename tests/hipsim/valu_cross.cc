// Vector instructions that move data between lanes or between lanes and scalars, and accumulator moves.
#include "lanes.h"
#include "opcodes.h"

namespace hipsim {
namespace {

u32 scalar_poison(const Wave& w, int reg, int lane) {
  u32 p = 0;
  for (int b = 0; b < 4; b++)
    if (w.vp[reg].b[b] >> lane & 1) p |= 0xFFu << (8 * b);
  return p;
}

u32 scalar_value(Wave& w, const Operand& o, const char* what) {
  if (o.kind == Kind::kConst) return static_cast<u32>(o.bits);
  if (o.kind != Kind::kSgpr) fail("%s: scalar operand expected", what);
  if (w.sp[o.reg]) fail("%s: lane number that nobody wrote", what);
  return w.get_s(o.reg);
}

void read_lane(Wave& w, const Inst& i, int lane) {
  const Operand& o = i.op[1];
  if (o.kind != Kind::kVgpr) fail("v_readlane: vector operand expected");
  w.check_v(o.reg, 1ull << lane);
  w.set_s(i.op[0].reg, w.v[o.reg][lane], scalar_poison(w, o.reg, lane));
}
void readfirstlane(Wave& w, const Inst& i) { read_lane(w, i, w.exec() ? __builtin_ctzll(w.exec()) : 0); }
void readlane(Wave& w, const Inst& i) {
  read_lane(w, i, static_cast<int>(scalar_value(w, i.op[2], "v_readlane") & 63));
}

void writelane(Wave& w, const Inst& i) {
  u32 lane = scalar_value(w, i.op[2], "v_writelane") & 63;
  u32 poison = 0, value;
  if (i.op[1].kind == Kind::kSgpr)
    value = w.get_s(i.op[1].reg), poison = w.sp[i.op[1].reg];
  else
    value = static_cast<u32>(i.op[1].bits);
  int d = i.op[0].reg;
  w.check_v_write(d, 1ull << lane);
  w.v[d][lane] = value;
  for (int b = 0; b < 4; b++)
    w.vp[d].b[b] = (w.vp[d].b[b] & ~(1ull << lane)) | static_cast<u64>((poison >> (8 * b) & 0xFF) != 0) << lane;
}

// Lanes [from, from + n) of src0 change places with lanes [from + n, from + 2n) of vdst, in every block of 2n lanes.
void swap_lanes(Wave& w, const Inst& i, int n) {
  if (w.exec() != kAllLanes) fail("permlane swap with inactive lanes: the effect is not established");
  int d = i.op[0].reg, s = i.op[1].reg;
  w.check_v(d, kAllLanes), w.check_v(s, kAllLanes);
  for (int base = 0; base < kLanes; base += 2 * n)
    for (int l = base; l < base + n; l++) {
      std::swap(w.v[s][l], w.v[d][l + n]);
      for (int b = 0; b < 4; b++) {
        u64 &x = w.vp[s].b[b], &y = w.vp[d].b[b];
        u64 px = x >> l & 1, py = y >> (l + n) & 1;
        x = (x & ~(1ull << l)) | py << l;
        y = (y & ~(1ull << (l + n))) | px << (l + n);
      }
    }
}

void move(Wave& w, const Inst& i) {
  map32<1>(w, i, [](u32 a) { return a; }, Spread::kBytes);
}

void swap_registers(Wave& w, const Inst& i) {
  int a = i.op[0].reg, b = i.op[1].reg;
  u64 lanes = w.exec();
  w.check_v(a, lanes), w.check_v(b, lanes);
  for (int l = 0; l < kLanes; l++)
    if (lanes >> l & 1) std::swap(w.v[a][l], w.v[b][l]);
  for (int k = 0; k < 4; k++) {
    u64 pa = w.vp[a].b[k], pb = w.vp[b].b[k];
    w.vp[a].b[k] = (pa & ~lanes) | (pb & lanes);
    w.vp[b].b[k] = (pb & ~lanes) | (pa & lanes);
  }
}

const OpEntry kTable[] = {
    {"v_readfirstlane_b32", readfirstlane},
    {"v_readlane_b32", readlane},
    {"v_writelane_b32", writelane},
    {"v_permlane16_swap_b32", [](Wave& w, const Inst& i) { swap_lanes(w, i, 16); }},
    {"v_permlane32_swap_b32", [](Wave& w, const Inst& i) { swap_lanes(w, i, 32); }},
    {"v_accvgpr_read_b32", move},
    {"v_accvgpr_write_b32", move},
    {"v_accvgpr_mov_b32", move},
    {"v_accvgpr_read", move},
    {"v_accvgpr_write", move},
    {"v_swap_b32", swap_registers},
};

}  // namespace

OpTable valu_cross_ops() { return {kTable, sizeof kTable / sizeof *kTable}; }

}  // namespace hipsim
