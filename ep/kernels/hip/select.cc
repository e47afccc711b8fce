#include "kernels/hip/select.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "kernels/hip/preshuffle.h"

namespace mxort::hip {
namespace {

// Clocks of a tile-step: the larger of the matrix pipe (16 clocks a 16x16x128 instruction on one of four SIMDs, 32 with
// an FP8 operand, 64 for bf16) and of the loads (45.056 bytes a clock and compute unit), as tools/kernel_report works
// them out from the compiled loops; tests/kernels_hip/test_select.py holds these figures to those.
#define MXORT_ROWS(format, operand, clocks256, clocks128, clocks64)                                           \
  {"gemm_" format "_256x256", "gemm_mx", "gfx950", Operand::operand, 256, 256, 256, 1, false, clocks256},     \
      {"gemm_" format "_128x128", "gemm_mx", "gfx950", Operand::operand, 128, 128, 256, 2, false, clocks128}, \
      {"gemm_" format "_64x64", "gemm_mx", "gfx950", Operand::operand, 64, 64, 256, 2, false, clocks64},      \
      {"gemm_" format "_skinny", "gemm_mx", "gfx950", Operand::operand, 16, 64, 256, 1, true, 100},           \
      MXORT_DIRECT(format, "gfx950", operand, kFp4, 28, 100)
// A wave's weights of a step: codes and scales at the same bytes a clock; bf16 decodes besides.
#define MXORT_DIRECT(format, arch, operand, code, clocks16, clocks64)                                          \
  {"gemm_" format "_16x16", "gemm_direct", arch, Operand::operand, 16, 16, kDirectThreads, 1, true, clocks16,  \
   WeightCode::code,        true},                                                                             \
  {                                                                                                            \
    "gemm_" format "_16x64", "gemm_direct", arch, Operand::operand, 16, 64, kDirectThreads, 1, true, clocks64, \
        WeightCode::code, true                                                                                 \
  }

constexpr GemmRow kRows[] = {
    MXORT_ROWS("fp4", kFp4, 1024, 386, 193),
    MXORT_ROWS("e2m3", kFp6E2M3, 1024, 477, 239),
    MXORT_ROWS("e3m2", kFp6E3M2, 1024, 477, 239),
    MXORT_ROWS("e4m3", kFp8E4M3, 2048, 568, 284),
    {"gemm_bf16_64x128", "gemm_bf16", nullptr, Operand::kBf16, 64, 128, 256, 1, false, 568},
    {"gemm_bf16_skinny", "gemm_bf16", nullptr, Operand::kBf16, 16, 64, 256, 1, true, 200},
    MXORT_DIRECT("bf16", nullptr, kBf16, kFp4, 50, 200),
    {"gemm_int8w_64x64", "gemm_byte", nullptr, Operand::kBf16, 64, 64, 256, 1, false, 727, WeightCode::kInt8},
    {"gemm_int8w_skinny", "gemm_byte", nullptr, Operand::kBf16, 16, 64, 256, 1, true, 200, WeightCode::kInt8},
    MXORT_DIRECT("int8w", nullptr, kBf16, kInt8, 51, 200),
    {"gemm_fp8w_64x64", "gemm_byte", nullptr, Operand::kBf16, 64, 64, 256, 1, false, 727, WeightCode::kE4M3},
    {"gemm_fp8w_skinny", "gemm_byte", nullptr, Operand::kBf16, 16, 64, 256, 1, true, 200, WeightCode::kE4M3},
    MXORT_DIRECT("fp8w", nullptr, kBf16, kE4M3, 51, 200),
};
#undef MXORT_DIRECT
#undef MXORT_ROWS

static_assert(std::size(kRows) <= 64, "a bit of Device::disabled each");

constexpr unsigned kSkinnyRows = 16;
constexpr unsigned kMostGridY = 65535;

// Between two kernels of a stream or a captured graph: 2 us at 2.4 GHz, an assumption (docs/mi355x.md).
constexpr double kLaunchClocks = 4800;
// Of a wave that prepares a block a lane, in each term: some 700 vector instructions of 4 clocks.
constexpr double kPreparationClocks = 2800;

bool Is(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

// bf16 terms that hold A exactly, as far as the accuracy asks: a term has 8 bits, float 24, half 11.
int BFloat16Terms(const MatMulSpec& spec, DataType type) {
  if (spec.accuracy_level != AccuracyLevel::kFp32) return 1;
  if (spec.rotation != 1 || type == DataType::kFloat) return 3;
  return type == DataType::kFloat16 ? 2 : 1;
}

unsigned CeilDiv(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// Splits K where the tiles alone leave compute units idle. A split costs a pass over Y, so each keeps at least 8 steps.
unsigned SplitsFor(const GemmRow& row, unsigned tiles, unsigned steps, int units) {
  constexpr unsigned kFewestSteps = 8;
  const unsigned room = static_cast<unsigned>(units) * (row.rows >= 256 ? 1 : 2) / tiles;
  return std::max(1u, std::min(room, steps / kFewestSteps));
}

// A panel's columns are dealt to its fragments (layout.h), so that a narrow tile has some of all 64.
unsigned TilesN(const GemmRow& row, int64_t n) {
  return row.columns >= kPanelRows ? CeilDiv(n, row.columns)
                                   : CeilDiv(n, kPanelRows) * static_cast<unsigned>(kPanelRows / row.columns);
}

struct Candidate {
  const GemmRow* row;
  unsigned splits;
  double clocks;  // bound: rounds of workgroups x steps x clocks
};

Candidate Evaluate(const GemmRow& row, const Device& device, int64_t m, int64_t n, unsigned steps, int terms) {
  const unsigned tiles = CeilDiv(m, row.rows) * TilesN(row, n);
  if (row.direct) {                                          // every workgroup prepares all rows
    const int together = Is(device.arch, "gfx950") ? 2 : 1;  // workgroups that share a compute unit's LDS
    const double rounds = CeilDiv(tiles, device.compute_units);
    const double passes = CeilDiv(m * steps * kStepBlocks, kDirectThreads);
    const double preparing = CeilDiv(tiles, device.compute_units * together) * passes * kPreparationClocks;
    return {&row, 1, terms * (rounds * steps * row.clocks + preparing) + 2000};
  }
  const unsigned splits = SplitsFor(row, tiles, steps, device.compute_units);
  const double rounds = CeilDiv(static_cast<int64_t>(tiles) * splits, device.compute_units);
  const double fill = splits > 1 ? 4000 : 2000;  // filling the pipeline, the epilogue, and the sum of the splits
  const double before = kLaunchClocks + terms * kPreparationClocks + (splits > 1 ? kLaunchClocks : 0);  // and behind
  return {&row, splits, rounds * CeilDiv(steps, splits) * terms * row.clocks + fill + before};
}

// A kernel of up to 16 rows, where M allows one, goes before all others.
bool Better(const Candidate& a, const Candidate& b) {
  return a.row->skinny != b.row->skinny ? a.row->skinny : a.clocks < b.clocks;
}

bool Serves(const GemmRow& row, const Device& device, Operand operand, WeightCode weights) {
  return (row.arch == nullptr || Is(row.arch, device.arch)) && row.operand == operand && row.weights == weights;
}

// bf16 records of quantised activations.
int EmulatedOperand(const MatMulSpec& spec, Operand operand) {
  if (operand != Operand::kBf16) return kNoElement;
  switch (spec.activation_format) {
    case ActivationFormat::kMxfp4:
      return static_cast<int>(Operand::kFp4);
    case ActivationFormat::kMxfp6E2M3:
      return static_cast<int>(Operand::kFp6E2M3);
    case ActivationFormat::kMxfp6E3M2:
      return static_cast<int>(Operand::kFp6E3M2);
    case ActivationFormat::kMxfp8E4M3:
      return static_cast<int>(Operand::kFp8E4M3);
    case ActivationFormat::kNone:
      break;
  }
  return kNoElement;
}

}  // namespace

Preparation PreparationFor(const Device& device, const MatMulSpec& spec, DataType type) {
  // Elsewhere quantised activations are the bf16 of their values, exactly.
  const bool native = Is(device.arch, "gfx950") && spec.weight_format == WeightFormat::kMxfp4;
  const auto quantized = [&](const char* own, Operand operand, const char* emulated) -> Preparation {
    return native ? Preparation{own, operand, 1} : Preparation{emulated, Operand::kBf16, 1};
  };
  switch (spec.activation_format) {
    case ActivationFormat::kMxfp4:
      return quantized("prepare_fp4", Operand::kFp4, "prepare_fp4_bf16");
    case ActivationFormat::kMxfp6E2M3:
      return quantized("prepare_e2m3", Operand::kFp6E2M3, "prepare_e2m3_bf16");
    case ActivationFormat::kMxfp6E3M2:
      return quantized("prepare_e3m2", Operand::kFp6E3M2, "prepare_e3m2_bf16");
    case ActivationFormat::kMxfp8E4M3:
      return quantized("prepare_e4m3", Operand::kFp8E4M3, "prepare_e4m3_bf16");
    case ActivationFormat::kNone:
      break;
  }
  // Two FP6 terms: relative RMS error 7.5e-4, below bf16's, at twice bf16's matrix rate.
  if (native && spec.accuracy_level != AccuracyLevel::kFp32) return {"prepare_e2m3x2", Operand::kFp6E2M3, 2};
  return {"prepare_bf16", Operand::kBf16, BFloat16Terms(spec, type)};
}

int64_t DirectRows(Operand operand, unsigned steps, unsigned terms) {
  const int64_t unit = UnitBytes(operand) + (HasScales(operand) ? 1 : 0);
  return std::min<int64_t>(kFragmentRows, kDirectLds / (unit * kStepBlocks * steps * terms));
}

const GemmRow* GemmRows(size_t* count) {
  *count = sizeof(kRows) / sizeof(kRows[0]);
  return kRows;
}

Plan Select(const Device& device, const MatMulSpec& spec, DataType type, int64_t m, const char* name) {
  Plan plan;
  plan.prepare = PreparationFor(device, spec, type);
  plan.terms = static_cast<unsigned>(plan.prepare.terms);
  plan.steps = CeilDiv(spec.K, kStepK);
  // Offsets inside a panel are 32 bits, and the step counter of the weights is exact below 2^15.
  if (m < 1 || static_cast<int64_t>(plan.steps) * plan.terms >= 32768) return plan;
  if (!Is(device.arch, "gfx950") && !Is(device.arch, "gfx942")) return plan;

  Candidate best{nullptr, 1, 0};
  for (size_t i = 0; i < std::size(kRows); ++i) {
    const GemmRow& row = kRows[i];
    if (!Serves(row, device, plan.prepare.operand, WeightCodeOf(spec.weight_format)) || (device.disabled >> i & 1) != 0)
      continue;
    if (row.skinny && m > kSkinnyRows) continue;
    if (row.direct && m > DirectRows(row.operand, plan.steps, plan.terms)) continue;
    if (name != nullptr && !Is(row.name, name)) continue;
    const Candidate candidate = Evaluate(row, device, m, spec.N, plan.steps, plan.prepare.terms);
    if (best.row == nullptr || Better(candidate, best)) best = candidate;
  }
  if (best.row == nullptr) return plan;
  plan.gemm = best.row;
  plan.tiles_m = CeilDiv(m, best.row->rows);
  plan.tiles_n = TilesN(*best.row, spec.N);
  plan.steps_per_split = CeilDiv(plan.steps, best.splits);
  plan.splits = CeilDiv(plan.steps, plan.steps_per_split);
  plan.gemm_grid = {plan.tiles_m * plan.tiles_n, plan.splits, 1};
  if (best.row->direct) {
    plan.emulated = EmulatedOperand(spec, plan.prepare.operand);
    return plan;
  }
  plan.prepare_grid = {plan.steps, CeilDiv(m, kPanelRows), 1};
  if (plan.splits > 1) {
    plan.reduce_grid = {CeilDiv(spec.N, 256), static_cast<unsigned>(std::min<int64_t>(m, kMostGridY)), 1};
    plan.partial_bytes = static_cast<size_t>(plan.splits) * static_cast<size_t>(m * spec.N) * sizeof(float);
  }
  plan.activation_bytes = ActivationRecordBytes(static_cast<int>(plan.prepare.operand), m, spec.K, plan.prepare.terms);
  return plan;
}

}  // namespace mxort::hip
