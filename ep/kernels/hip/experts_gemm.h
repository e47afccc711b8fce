// The products of a mixture of experts: the loops of gemm.h and skinny.h, a tile with the weights of its expert.
#ifndef MXORT_KERNELS_HIP_EXPERTS_GEMM_H_
#define MXORT_KERNELS_HIP_EXPERTS_GEMM_H_

#include "kernels/hip/args_experts.h"
#include "kernels/hip/gemm.h"
#include "kernels/hip/skinny.h"
#include "kernels/hip/wave.h"

namespace mxort::hip {

// Weight records of an expert begin after whole panels.
MXORT_DEVICE u64 ExpertBytes(const GemmArgs& args) {
  return static_cast<u64>((args.n + kPanelRows - 1) / kPanelRows) * args.steps * RecordBytes(Operand::kFp4);
}

// The product of one tile's rows, with what is always so in it, for the compiler to leave out the rest.
MXORT_DEVICE GemmArgs OfExpert(const GemmArgs& all, u32 expert) {
  GemmArgs own = all;
  own.n &= ~31u;  // it is a multiple
  own.splits = 1;
  own.steps_per_split = own.steps;
  own.w = static_cast<const u8*>(all.w) + expert * ExpertBytes(all);
  own.column_scale += static_cast<u64>(expert) * all.n;
  own.bias += static_cast<u64>(expert) * all.n;
  return own;
}

// Many rows: tiles of slots, which are the rows of A and of Y. How many there are only the device knows: workgroups
// beyond them end, the others are ordered as if the grid had been theirs.
template <class T>
MXORT_DEVICE void ExpertsGemm(const ExpertsGemmArgs& args) {
  const u32 tiles_m = Uniform(*args.slots.count);
  if (GroupX() >= tiles_m * args.gemm.tiles_n) return;
  const TileIndex tile = OrderTiles(GroupX(), tiles_m, args.gemm.tiles_n);
  const ExpertTile of_tile = args.slots.tiles[tile.m];
  GemmArgs own = OfExpert(args.gemm, Uniform(static_cast<u32>(of_tile.expert)));
  own.m = Uniform(of_tile.end);
  own.type = static_cast<int>(Type::kFloat);
  GemmTile<T>(own, tile);
}

// Few rows: every active expert times all rows, which are one panel; Y by slot.
template <class Mma>
MXORT_DEVICE void ExpertsUp(const ExpertsGemmArgs& args) {
  const u32 tile = GroupY();
  if (tile >= Uniform(*args.slots.count)) return;
  GemmArgs own = OfExpert(args.gemm, Uniform(static_cast<u32>(args.slots.tiles[tile].expert)));
  own.type = static_cast<int>(Type::kFloat);
  own.y = static_cast<float*>(own.y) + static_cast<u64>(tile) * kFewRows * own.n;
  SkinnyPanel<Mma>(own, GroupX(), 0);
}

// ---- few rows: the second product and the weighted sum --------------------------------------------------------------
//
// A workgroup has 16 columns, one fragment of a panel, over all active experts: so nothing is left to add in another
// launch, and every byte of weights is read once. Its waves have equal runs of the steps of all experts.

inline constexpr u32 kDownWaves = kDownThreads / kWave;

// The four workgroups of a panel share its scales: they are 8 apart, and so on one die.
struct DownPlace {
  u32 panel, fragment;
  MXORT_METHOD DownPlace() : panel(GroupX() / 32 * 8 + GroupX() % 8), fragment(GroupX() / 8 % 4) {}
};

// What a lane knows of its row and columns: four neighbouring ones of row l % 16.
struct DownLane {
  u32 row, column;
  MXORT_METHOD explicit DownLane(const DownPlace& place)
      : row(Lane() % 16), column(place.panel * kPanelRows + Lane() / 16 * 16 + place.fragment * 4) {}
};

// total += weight * (sum * column_scale, and the bias where `with_bias`), where the lane's row chose the expert.
MXORT_DEVICE void Fold(const ExpertsGemmArgs& args, const DownLane& lane, u32 tile, u32 expert, bool with_bias,
                       f32x4 sum, f32x4* total) {
  const float weight = args.slots.weight[tile * kFewRows + lane.row];
  if (weight < 0 || lane.column >= args.gemm.n) return;
  const u64 at = static_cast<u64>(expert) * args.gemm.n + lane.column;  // n and column: multiples of 4
  f32x4 y = sum * *reinterpret_cast<const f32x4*>(args.gemm.column_scale + at);
  if (with_bias) y += *reinterpret_cast<const f32x4*>(args.gemm.bias + at);
  *total += weight * y;
}

// The rows of a tile in one record, as a wave multiplies them; rows that do not exist are not read.
template <class Mma>
struct Rows {
  typename Mma::Activation part[Mma::kParts];
  i32 scale;

  MXORT_METHOD void Load(const Stream& a, u32 record, u32 rows) {
    constexpr Operand kOperand = Mma::kOperand;
    const u32 lane = Lane(), at = lane % 16 < rows ? record : kBehind;
    scale = HasScales(kOperand) ? a.Word(at + lane * 4) : 0;
    Unroll<0, Mma::kParts>([&](auto p) __attribute__((always_inline)) {
      Unroll<0, Mma::kUnitReads>([&](auto i) __attribute__((always_inline)) {
        const u32 slot = at + ScaleBytes(kOperand) + (p.value + i.value) * kSlotBytes;
        Mma::template Insert<i.value>(part[p.value], a.Slot(slot + lane * kLaneSlot));
      });
    });
  }
  MXORT_METHOD f32x4 Times(i32x4 weight, i32 weight_scale, f32x4 sum) const {
    Unroll<0, Mma::kParts>([&](auto p) __attribute__((always_inline)) {
      sum = Mma::template Multiply<p.value, 0, 0, 0>(weight, weight_scale, part[p.value], scale, sum);
    });
    return sum;
  }
};

// Loads of kAhead steps are under way together: of the weights, and of as many terms of the rows as there are of a
// format with scales. Those of bf16 are read term by term.
template <class Mma>
MXORT_DEVICE f32x4 DownSum(const ExpertsGemmArgs& args, const DownPlace& place) {
  constexpr u32 kAhead = 4, kRecordA = RecordBytes(Mma::kOperand), kRecordW = RecordBytes(Operand::kFp4);
  constexpr int kTerms = !HasScales(Mma::kOperand) ? 0 : Mma::kOperand == Operand::kFp6E2M3 ? 2 : 1;
  const GemmArgs& gemm = args.gemm;
  const DownLane lane(place);
  const u32 units = Uniform(*args.slots.count) * gemm.steps;
  const u32 begin = units * WaveIndex() / kDownWaves, end = units * (WaveIndex() + 1) / kDownWaves;
  const u64 panel_a = static_cast<u64>(gemm.steps) * gemm.terms * kRecordA;
  const auto rows_of = [&](u32 tile) __attribute__((always_inline)) {
    return Stream(static_cast<const u8*>(gemm.a) + tile * panel_a, static_cast<u32>(panel_a));
  };
  u32 tile = begin / gemm.steps, step = begin % gemm.steps;
  f32x4 total = {0, 0, 0, 0}, sum = {0, 0, 0, 0};
#pragma clang loop unroll(disable)
  for (u32 first = begin; first < end; first += kAhead) {
    i32x4 code[kAhead];
    i32 scales[kAhead];
    Rows<Mma> rows[kAhead][kTerms == 0 ? 1 : kTerms];
    u32 ahead_tile = tile, ahead_step = step;
    Unroll<0, static_cast<int>(kAhead)>([&](auto i) __attribute__((always_inline)) {
      if (first + i.value < end) {
        const GemmArgs own = OfExpert(gemm, Uniform(static_cast<u32>(args.slots.tiles[ahead_tile].expert)));
        const Stream w(static_cast<const u8*>(own.w) + static_cast<u64>(place.panel) * gemm.steps * kRecordW,
                       gemm.steps * kRecordW);
        code[i.value] =
            w.Slot(ahead_step * kRecordW + kScaleRecordBytes + place.fragment * kSlotBytes + Lane() * kLaneSlot);
        scales[i.value] = w.Word(ahead_step * kRecordW + Lane() * 4);
        Unroll<0, kTerms>([&](auto term) __attribute__((always_inline)) {
          if (term.value == 0 || term.value < gemm.terms) {
            rows[i.value][term.value].Load(rows_of(ahead_tile), (ahead_step * gemm.terms + term.value) * kRecordA,
                                           gemm.m);
          }
        });
        const bool last = ++ahead_step == gemm.steps;
        ahead_tile += last, ahead_step = last ? 0 : ahead_step;
      }
    });
    Unroll<0, static_cast<int>(kAhead)>([&](auto i) __attribute__((always_inline)) {
      if (first + i.value < end) {
        const i32 scale = static_cast<i32>(static_cast<u32>(scales[i.value]) >> (8 * place.fragment));
        Unroll<0, kTerms>([&](auto term) __attribute__((always_inline)) {
          if (term.value == 0 || term.value < gemm.terms) {
            sum = rows[i.value][term.value].Times(code[i.value], scale, sum);
          }
        });
        if constexpr (kTerms == 0) {
          for (u32 term = 0; term < gemm.terms; ++term) {
            rows[i.value][0].Load(rows_of(tile), (step * gemm.terms + term) * kRecordA, gemm.m);
            sum = rows[i.value][0].Times(code[i.value], scale, sum);
          }
        }
        const bool last = step + 1 == gemm.steps;
        if (last || first + i.value + 1 == end) {  // the wave with an expert's last step has its bias
          Fold(args, lane, tile, Uniform(static_cast<u32>(args.slots.tiles[tile].expert)), last, sum, &total);
          sum = f32x4{0, 0, 0, 0};
        }
        tile += last, step = last ? 0 : step + 1;
      }
    });
  }
  return total;
}

template <class Mma>
MXORT_DEVICE void ExpertsDown(const ExpertsGemmArgs& args) {
  static MXORT_LDS __attribute__((aligned(16))) f32x4 memory[kDownWaves][kWave];
  const DownPlace place;
  if (place.panel * kPanelRows >= args.gemm.n) return;
  memory[WaveIndex()][Lane()] = DownSum<Mma>(args, place);
  Synchronize();
  if (WaveIndex() != 0) return;
  const DownLane lane(place);
  f32x4 total = memory[0][Lane()];
  Unroll<1, kDownWaves>([&](auto wave) __attribute__((always_inline)) { total += memory[wave.value][Lane()]; });
  if (lane.row >= args.gemm.m || lane.column >= args.gemm.n) return;
  const bool nan = args.slots.count[1] >> lane.row & 1;
  Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
    StoreOne(args.gemm.type, args.gemm.y, static_cast<u64>(lane.row) * args.gemm.n + lane.column + i.value,
             nan ? __builtin_nanf("") : total[i.value]);
  });
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_EXPERTS_GEMM_H_
