// Matrix instructions. Operand layouts: notes on gfx950, sections 2.2 to 2.4.
//
// Arithmetic: each 32-element block is summed exactly where the formats allow it (FP4 and FP6 in fp32, whose 24 bits
// suffice; otherwise in double), scaled in double, added to C in double and rounded once. Hardware rounds in ways that
// no public source describes, so kernels are compared with a tolerance of the fp32 accumulation.
//
// EXEC is ignored, as on hardware. A decoded operand is kept and used again while its registers hold the same bits.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "lanes.h"
#include "minifloat.h"
#include "opcodes.h"

namespace hipsim {
namespace {

constexpr int kMaxElements = 2048;  // 16 x 128 or 32 x 64

enum Type { kMini = 0, kBf16, kF16, kF32, kI8 };  // kMini: format from cbsz / blgp or from the table

struct Shape {
  int m, k;  // M = N
  int groups() const { return kLanes / m; }
};

int registers_of(Type t, int small, Shape s) {
  if (t == kMini)
    return s.m * s.k == kMaxElements ? (small <= kBf8 ? 8 : small <= kBf6 ? 6 : 4) : s.m * s.k / kLanes / 4;
  return t == kF32 ? 1 : t == kI8 ? s.m * s.k / kLanes / 4 : s.m * s.k / kLanes / 2;
}

// Elements of one lane, in order of the slots of its registers.
void lane_elements(const u32 (*v)[kLanes], int l, Type t, int small, int registers, bool fnuz, float* out) {
  switch (t) {
    case kMini: {
      const float* table = mini_table(fnuz && small <= kBf8 ? 5 + small : small);
      if (small == kFp4) {
        for (int r = 0; r < registers; r++)
          for (int n = 0; n < 8; n++) *out++ = table[v[r][l] >> (4 * n) & 15];
      } else if (small <= kBf8) {
        for (int r = 0; r < registers; r++)
          for (int n = 0; n < 4; n++) *out++ = table[v[r][l] >> (8 * n) & 255];
      } else {
        for (int r = 0; r < 6; r += 3) {  // 16 codes in 3 registers
          u64 lo = v[r][l] | static_cast<u64>(v[r + 1][l]) << 32;
          u64 hi = v[r + 1][l] >> 16 | static_cast<u64>(v[r + 2][l]) << 16;  // from bit 48 on
          for (int n = 0; n < 8; n++) *out++ = table[lo >> (6 * n) & 63];
          for (int n = 0; n < 8; n++) *out++ = table[hi >> (6 * n) & 63];
        }
      }
      break;
    }
    case kBf16:
    case kF16:
      for (int r = 0; r < registers; r++)
        for (int h = 0; h < 32; h += 16)
          *out++ = t == kBf16 ? bf16_to_float(static_cast<u16>(v[r][l] >> h))
                              : half_to_float(static_cast<u16>(v[r][l] >> h));
      break;
    case kF32:
      *out = f32(v[0][l]);
      break;
    case kI8:
      for (int r = 0; r < registers; r++)
        for (int b = 0; b < 32; b += 8) *out++ = static_cast<float>(static_cast<int8_t>(v[r][l] >> b));
      break;
  }
}

// A as [m][k], B as [k][n].
struct Decoded {
  u32 raw[8][kLanes];
  int reg = -1, registers = 0, small = 0, m = 0, k = 0;
  Type type = kMini;
  bool b = false, fnuz = false;
  alignas(64) float x[kMaxElements];
};

const float* decode(Wave& w, const Operand& o, Type type, int small, Shape s, bool b, bool fnuz) {
  static thread_local std::unique_ptr<Decoded[]> cache(new Decoded[64]);
  int registers = registers_of(type, small, s);
  if (o.kind != Kind::kVgpr || o.count < registers) fail("matrix operand does not fit its format");
  const u32(*v)[kLanes] = &w.v[o.reg];
  for (int r = 0; r < registers; r++) w.check_v(o.reg + r, kAllLanes);
  Decoded& d = cache[static_cast<size_t>(o.reg / 2 % 32 + (b ? 32 : 0))];
  size_t bytes = static_cast<size_t>(registers) * sizeof *v;
  if (d.reg == o.reg && d.registers == registers && d.small == small && d.m == s.m && d.k == s.k && d.type == type &&
      d.b == b && d.fnuz == fnuz && memcmp(d.raw, v, bytes) == 0)
    return d.x;
  d.reg = o.reg, d.registers = registers, d.small = small, d.m = s.m, d.k = s.k, d.type = type, d.b = b, d.fnuz = fnuz;
  memcpy(d.raw, v, bytes);
  int per_lane = s.m * s.k / kLanes;
  bool split = type == kMini && per_lane == 32 && small <= kBf8;  // two runs of 16, half the instruction's K apart
  float e[32];
  for (int l = 0; l < kLanes; l++) {
    lane_elements(d.raw, l, type, small, registers, fnuz, e);
    int row = l % s.m, group = l / s.m;
    for (int n = 0; n < per_lane; n++) {
      int k = split ? (n < 16 ? 16 * group + n : s.k / 2 + 16 * group + n - 16) : per_lane * group + n;
      d.x[b ? k * s.m + row : row * s.k + k] = e[n];
    }
  }
  return d.x;
}

// sum[m][n] = A[m][k0 .. k0+n) . B[k0 .. k0+n)[n]
template <class T, int M>
void multiply(const float* a, const float* b, int k_total, int k0, int count, T* sum) {
  constexpr int kWidth = 32 / sizeof(T);
  typedef T Vec __attribute__((vector_size(32)));
  typedef float Half __attribute__((vector_size(kWidth * 4)));
  auto fetch = [](const float* from) {
    Half h;
    memcpy(&h, from, sizeof h);
    return __builtin_convertvector(h, Vec);
  };
  for (int m = 0; m < M; m += 4)
    for (int n = 0; n < M; n += 2 * kWidth) {
      Vec p0{}, p1{}, q0{}, q1{}, r0{}, r1{}, s0{}, s1{};
      const float* row = a + m * k_total;
      for (int k = k0; k < k0 + count; k++) {
        Vec y0 = fetch(b + k * M + n), y1 = fetch(b + k * M + n + kWidth);
        T x = row[k];
        p0 += y0 * x, p1 += y1 * x;
        x = row[k_total + k];
        q0 += y0 * x, q1 += y1 * x;
        x = row[2 * k_total + k];
        r0 += y0 * x, r1 += y1 * x;
        x = row[3 * k_total + k];
        s0 += y0 * x, s1 += y1 * x;
      }
      const Vec* results[8] = {&p0, &p1, &q0, &q1, &r0, &r1, &s0, &s1};
      for (int r = 0; r < 8; r++) memcpy(sum + (m + r / 2) * M + n + r % 2 * kWidth, results[r], sizeof(Vec));
    }
}

int output_row(int m, int lane, int i) { return m == 16 ? 4 * (lane / 16) + i : 8 * (i / 4) + 4 * (lane / 32) + i % 4; }

u32 fold(u64 lanes, int m) {  // lanes -> rows
  return m == 16 ? static_cast<u32>((lanes | lanes >> 16 | lanes >> 32 | lanes >> 48) & 0xFFFF)
                 : static_cast<u32>(lanes | lanes >> 32);
}

// D = C + sum; unknown rows of A and columns of B make the results of that row or column unknown.
//
// All of C is read before D is written, because they may overlap: LLVM gives results of four registers to registers of
// C that are not D's own (v[164:167] from v[162:165]). Larger results take several passes, so LLVM's assembler refuses
// that of them, and so does this.
void finish(Wave& w, const Inst& i, int m, const double* sum, u32 bad_rows, u32 bad_columns, bool integer) {
  const int registers = m * m / kLanes;
  const Operand &d = i.op[0], &c = i.op[3];
  alignas(64) u32 addend[16][kLanes];
  u64 unknown[16] = {};
  if (c.kind == Kind::kVgpr) {
    const int apart = std::abs(d.reg - c.reg);
    if (registers > 4 && apart != 0 && apart < registers)
      fail("result and addend of a matrix instruction overlap in part: hardware needs several passes for this shape");
    for (int r = 0; r < registers; r++) {
      w.check_v(c.reg + r, kAllLanes);
      unknown[r] = w.vp[c.reg + r].any();
    }
    memcpy(addend, w.v[c.reg], sizeof addend[0] * static_cast<size_t>(registers));
  } else if (c.kind == Kind::kConst) {
    std::fill_n(addend[0], registers * kLanes, static_cast<u32>(c.bits));
  } else {
    fail("matrix addend is no vector register");
  }
  for (int r = 0; r < registers; r++) {
    if (bad_rows | bad_columns)
      for (int l = 0; l < kLanes; l++)
        if (bad_columns >> (l % m) & 1 || bad_rows >> output_row(m, l, r) & 1) unknown[r] |= 1ull << l;
    w.check_v_write(d.reg + r, kAllLanes);
    u32* to = w.v[d.reg + r];
    for (int l = 0; l < kLanes; l++) {
      double s = sum[output_row(m, l, r) * m + l % m];
      if (integer)
        to[l] = static_cast<u32>(static_cast<i64>(s)) + addend[r][l];
      else
        to[l] = bits(static_cast<float>(static_cast<double>(f32(addend[r][l])) + s));
    }
    w.vp[d.reg + r] = Poison::all(unknown[r]);
  }
}

u64 unknown_lanes(const Wave& w, int reg, int count) {
  u64 p = 0;
  for (int r = 0; r < count; r++) p |= w.vp[reg + r].any();
  return p;
}

double scale_value(u32 byte) { return byte == 255 ? NAN : power_of_byte(byte); }

template <int M>
void scaled(Wave& w, const Inst& i, bool has_scales) {
  constexpr int kK = kMaxElements / M, kBlocks = kK / 32;
  int fa = i.cbsz, fb = i.blgp;
  if (fa > kFp4 || fb > kFp4) fail("matrix format code beyond 4");
  Shape s{M, kK};
  const float* a = decode(w, i.op[1], kMini, fa, s, false, false);
  const float* b = decode(w, i.op[2], kMini, fb, s, true, false);
  u32 bad_rows = fold(unknown_lanes(w, i.op[1].reg, registers_of(kMini, fa, s)), M);
  u32 bad_columns = fold(unknown_lanes(w, i.op[2].reg, registers_of(kMini, fb, s)), M);

  double scale[2][kBlocks][M];
  for (int o = 0; o < 2; o++) {
    int byte = (i.op_sel >> o & 1) | (i.op_sel_hi >> o & 1) << 1;
    const Operand& so = i.op[4 + o];
    if (!has_scales) {
      for (auto& block : scale[o])
        for (double& x : block) x = 1;
      continue;
    }
    if (so.kind != Kind::kVgpr)
      fail("scale of a matrix instruction outside of a VGPR: hardware reads other bits then (notes 2.4, trap 1)");
    w.check_v(so.reg, kAllLanes);
    (o ? bad_columns : bad_rows) |= fold(w.vp[so.reg].b[byte], M);
    for (int l = 0; l < kLanes; l++) scale[o][l / M][l % M] = scale_value(w.v[so.reg][l] >> (8 * byte) & 255);
  }

  alignas(64) double total[M * M] = {};
  bool exact_in_float = fa >= kFp6 && fb >= kFp6;
  for (int j = 0; j < kBlocks; j++) {
    auto accumulate = [&](const auto* sum) {
      for (int m = 0; m < M; m++) {
        double sa = scale[0][j][m];
        for (int n = 0; n < M; n++) total[m * M + n] += static_cast<double>(sum[m * M + n]) * (sa * scale[1][j][n]);
      }
    };
    if (exact_in_float) {
      alignas(64) float sum[M * M];
      multiply<float, M>(a, b, kK, 32 * j, 32, sum);
      accumulate(sum);
    } else {
      alignas(64) double sum[M * M];
      multiply<double, M>(a, b, kK, 32 * j, 32, sum);
      accumulate(sum);
    }
  }
  finish(w, i, M, total, bad_rows, bad_columns, false);
}

// entry->arg: M | K << 8 | type << 16 | format of A << 20 | format of B << 24
void plain(Wave& w, const Inst& i) {
  u32 arg = i.entry->arg;
  Shape s{static_cast<int>(arg & 255), static_cast<int>(arg >> 8 & 255)};
  auto type = static_cast<Type>(arg >> 16 & 15);
  int fa = static_cast<int>(arg >> 20 & 15), fb = static_cast<int>(arg >> 24 & 15);
  if (i.cbsz || i.blgp || i.abid) fail("broadcast modifiers of matrix instructions are not modelled");
  bool fnuz = w.wg->launch->kernel->module->arch == "gfx942";
  const float* a = decode(w, i.op[1], type, fa, s, false, fnuz);
  const float* b = decode(w, i.op[2], type, fb, s, true, fnuz);
  u32 bad_rows = fold(unknown_lanes(w, i.op[1].reg, registers_of(type, fa, s)), s.m);
  u32 bad_columns = fold(unknown_lanes(w, i.op[2].reg, registers_of(type, fb, s)), s.m);
  alignas(64) double sum[32 * 32];
  if (s.m == 16)
    multiply<double, 16>(a, b, s.k, 0, s.k, sum);
  else
    multiply<double, 32>(a, b, s.k, 0, s.k, sum);
  finish(w, i, s.m, sum, bad_rows, bad_columns, type == kI8);
}

#define PLAIN(name, m, k, type) {"v_mfma_" name, plain, Lit::kB32, (m) | (k) << 8 | static_cast<u32>(type) << 16}
#define FP8(m, k, na, nb, fa, fb) \
  {"v_mfma_f32_" #m "x" #m "x" #k "_" na "_" nb, plain, Lit::kB32, (m) | (k) << 8 | (fa) << 20 | (fb) << 24}

const OpEntry kTable[] = {
    {"v_mfma_scale_f32_16x16x128_f8f6f4", [](Wave& w, const Inst& i) { scaled<16>(w, i, true); }},
    {"v_mfma_scale_f32_32x32x64_f8f6f4", [](Wave& w, const Inst& i) { scaled<32>(w, i, true); }},
    {"v_mfma_f32_16x16x128_f8f6f4", [](Wave& w, const Inst& i) { scaled<16>(w, i, false); }},
    {"v_mfma_f32_32x32x64_f8f6f4", [](Wave& w, const Inst& i) { scaled<32>(w, i, false); }},
    PLAIN("f32_16x16x32_bf16", 16, 32, kBf16),
    PLAIN("f32_32x32x16_bf16", 32, 16, kBf16),
    PLAIN("f32_16x16x16_bf16", 16, 16, kBf16),
    PLAIN("f32_32x32x8_bf16", 32, 8, kBf16),
    PLAIN("f32_16x16x32_f16", 16, 32, kF16),
    PLAIN("f32_32x32x16_f16", 32, 16, kF16),
    PLAIN("f32_16x16x16_f16", 16, 16, kF16),
    PLAIN("f32_32x32x8_f16", 32, 8, kF16),
    PLAIN("f32_16x16x4_f32", 16, 4, kF32),
    PLAIN("f32_32x32x2_f32", 32, 2, kF32),
    PLAIN("i32_16x16x32_i8", 16, 32, kI8),
    PLAIN("i32_32x32x16_i8", 32, 16, kI8),
    PLAIN("i32_16x16x64_i8", 16, 64, kI8),
    PLAIN("i32_32x32x32_i8", 32, 32, kI8),
    FP8(16, 32, "fp8", "fp8", 0, 0),
    FP8(16, 32, "fp8", "bf8", 0, 1),
    FP8(16, 32, "bf8", "fp8", 1, 0),
    FP8(16, 32, "bf8", "bf8", 1, 1),
    FP8(32, 16, "fp8", "fp8", 0, 0),
    FP8(32, 16, "fp8", "bf8", 0, 1),
    FP8(32, 16, "bf8", "fp8", 1, 0),
    FP8(32, 16, "bf8", "bf8", 1, 1),
};

}  // namespace

OpTable mfma_ops() { return {kTable, sizeof kTable / sizeof *kTable}; }

}  // namespace hipsim
