#include "kernels/hip/select_experts.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "kernels/hip/args_experts.h"
#include "kernels/hip/preshuffle.h"

namespace mxort::hip {
namespace {

static_assert(static_cast<int>(Gates::kInterleaved) == static_cast<int>(Gating::kInterleaved));
static_assert(static_cast<int>(Gates::kHalves) == static_cast<int>(Gating::kHalves));

// The tiles and their clocks are those of select.cc.
#define MXORT_EXPERTS_TILE(format, operand, tile, size, clocks) \
  {"experts_" format "_" tile,                                  \
   "experts_mx",                                                \
   "gfx950",                                                    \
   Operand::operand,                                            \
   "experts_" format "_" tile,                                  \
   "experts_" format "_" tile,                                  \
   size,                                                        \
   size,                                                        \
   clocks}
#define MXORT_EXPERTS_ROWS(format, operand, clocks256, clocks128, clocks64) \
  MXORT_EXPERTS_TILE(format, operand, "256x256", 256, clocks256),           \
      MXORT_EXPERTS_TILE(format, operand, "128x128", 128, clocks128),       \
      MXORT_EXPERTS_TILE(format, operand, "64x64", 64, clocks64),           \
      {"experts_" format "_few",                                            \
       "experts_mx",                                                        \
       "gfx950",                                                            \
       Operand::operand,                                                    \
       "experts_" format "_up",                                             \
       "experts_" format "_down",                                           \
       kFewRows,                                                            \
       kPanelRows,                                                          \
       100}

constexpr ExpertsRow kRows[] = {
    MXORT_EXPERTS_ROWS("fp4", kFp4, 1024, 386, 193),
    MXORT_EXPERTS_ROWS("e2m3", kFp6E2M3, 1024, 477, 239),
    MXORT_EXPERTS_ROWS("e3m2", kFp6E3M2, 1024, 477, 239),
    MXORT_EXPERTS_ROWS("e4m3", kFp8E4M3, 2048, 568, 284),
    {"experts_bf16_64x128", "experts_bf16", nullptr, Operand::kBf16, "experts_bf16_64x128", "experts_bf16_64x128", 64,
     128, 568},
    {"experts_bf16_few", "experts_bf16", nullptr, Operand::kBf16, "experts_bf16_up", "experts_bf16_down", kFewRows,
     kPanelRows, 200},
};
#undef MXORT_EXPERTS_ROWS
#undef MXORT_EXPERTS_TILE

static_assert(std::size(kRows) <= 64, "a bit of Device::disabled each");

constexpr int64_t kMostPairs = 32768;  // of a row and an expert, in one launch
constexpr int64_t kMostWaves = 512;    // that route: every workgroup of `arrange` adds the counts of all
constexpr int64_t kArrangeGroups = 64;
constexpr int64_t kMostWorkgroups = (int64_t{1} << 24) - 1;  // HIP: grid times 256 threads below 2^32

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
unsigned Count(int64_t x) { return static_cast<unsigned>(x); }

// The shapes of the two products, of one expert.
struct Shapes {
  int64_t k[2], n[2];
  explicit Shapes(const ExpertsSpec& spec)
      : k{spec.hidden, spec.inner}, n{spec.inner * (spec.gating == Gating::kNone ? 1 : 2), spec.hidden} {}
};

// Bound of both products, of an even router: rounds of workgroups x steps x clocks.
double ClocksOf(const ExpertsRow& row, const Device& device, const ExpertsPlan& plan, const Shapes& shapes,
                int64_t pairs, int64_t experts) {
  const int64_t active = std::min(pairs, experts), tiles = active * CeilDiv(CeilDiv(pairs, active), row.height);
  const int64_t terms[2] = {plan.first.terms, plan.second.terms};
  double clocks = 0;
  for (int i = 0; i < 2; ++i) {
    const int64_t rounds = CeilDiv(tiles * CeilDiv(shapes.n[i], row.columns), device.compute_units);
    clocks += static_cast<double>(rounds * plan.steps[i] * terms[i] * row.clocks);
  }
  return clocks;
}

// Few rows before all others, where there are few; of equal ones the smaller tile, which is named later.
const ExpertsRow* Best(const Device& device, const ExpertsPlan& plan, const Shapes& shapes, int64_t rows,
                       const ExpertsSpec& spec, const char* name) {
  const ExpertsRow* best = nullptr;
  double least = 0;
  for (size_t i = 0; i < std::size(kRows); ++i) {
    const ExpertsRow& row = kRows[i];
    if (row.arch && std::strcmp(row.arch, device.arch) != 0) continue;
    if (row.operand != plan.first.operand || (device.disabled >> i & 1) != 0) continue;
    if (name && std::strcmp(row.name, name) != 0) continue;
    const bool few = row.height == kFewRows;
    if (few && rows > kFewRows) continue;
    const double clocks = few ? 0 : ClocksOf(row, device, plan, shapes, rows * spec.chosen, spec.experts);
    if (!best || clocks <= least) best = &row, least = clocks;
  }
  return best;
}

}  // namespace

const ExpertsRow* ExpertsRows(size_t* count) {
  *count = std::size(kRows);
  return kRows;
}

int64_t ExpertsLaunchRows(const ExpertsSpec& spec) { return std::max<int64_t>(1, kMostPairs / spec.chosen); }

ExpertsPlan SelectExperts(const Device& device, const ExpertsSpec& spec, DataType type, int64_t rows,
                          const char* name) {
  ExpertsPlan plan;
  if (std::strcmp(device.arch, "gfx950") != 0 && std::strcmp(device.arch, "gfx942") != 0) return plan;
  if (rows < 1 || rows > ExpertsLaunchRows(spec) || spec.experts > kMostExperts) return plan;
  const Shapes shapes(spec);
  plan.first = PreparationFor(device, spec.first, type);
  plan.second = PreparationFor(device, spec.second, DataType::kFloat);
  const Preparation* const preparations[2] = {&plan.first, &plan.second};
  for (int i = 0; i < 2; ++i) {
    plan.steps[i] = Count(StepsOf(shapes.k[i]));
    if (static_cast<int64_t>(plan.steps[i]) * preparations[i]->terms >= 32768) return plan;  // as Select
  }
  const ExpertsRow* row = Best(device, plan, shapes, rows, spec, name);
  if (!row) return plan;

  const int64_t pairs = rows * spec.chosen, active = std::min(pairs, spec.experts), height = row->height;
  plan.few = height == kFewRows;
  const int64_t tiles = plan.few ? active : (pairs + active * (height - 1)) / height;
  const int64_t panels = plan.few ? tiles : tiles * height / kPanelRows;
  plan.tiles = Count(tiles), plan.slots = Count(tiles * height);
  for (int i = 0; i < 2; ++i) {
    plan.tiles_n[i] = Count(CeilDiv(shapes.n[i], row->columns));
    if (tiles * plan.tiles_n[i] > kMostWorkgroups) return plan;
    plan.product_grid[i] = {plan.tiles * plan.tiles_n[i], 1, 1};
    plan.prepare_grid[i] = {plan.steps[i], Count(panels), 1};
    plan.records_bytes[i] =
        ActivationRecordBytes(static_cast<int>(preparations[i]->operand),
                              (plan.few && i == 0 ? 1 : panels) * kPanelRows, shapes.k[i], preparations[i]->terms);
  }
  if (plan.few) {
    plan.prepare_grid[0] = {plan.steps[0] + 1, 1, 1};
    plan.prepare_grid[1].y = Count(CeilDiv(tiles, 4));
    plan.product_grid[0] = {plan.tiles_n[0], plan.tiles, 1};
    plan.product_grid[1] = {Count(CeilDiv(plan.tiles_n[1], 8) * 32), 1, 1};
  } else {
    const int64_t wave_rows = CeilDiv(rows, kMostWaves), waves = CeilDiv(rows, wave_rows);
    plan.wave_rows = Count(wave_rows), plan.waves = Count(waves);
    plan.group_waves = Count(CeilDiv(waves, kArrangeGroups));
    plan.groups = Count(CeilDiv(waves, plan.group_waves));
  }
  const int64_t widest = plan.few ? shapes.n[0] : std::max(shapes.n[0], shapes.n[1]);
  plan.products_bytes = static_cast<size_t>(tiles * height * widest) * sizeof(float);
  plan.row = row;
  return plan;
}

}  // namespace mxort::hip
