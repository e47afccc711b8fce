// More than 16 rows of A times weights of a byte a code: a tile of 64 x 64, four waves two by two, each 2 x 2
// fragments, operands straight from records to registers. Bound by decoding the weights (every code twice a workgroup);
// weights of this kind are the head of a model, of whose rows a decoder asks for the last.
#ifndef MXORT_KERNELS_HIP_BYTE_TILE_H_
#define MXORT_KERNELS_HIP_BYTE_TILE_H_

#include "kernels/hip/skinny.h"

namespace mxort::hip {

template <class Mma>
MXORT_DEVICE void ByteTile(const GemmArgs& args) {
  constexpr int kSide = 2;  // fragments of a wave either way
  constexpr u32 kRecordW = WeightRecordBytes(Mma::kWeight), kRecordA = RecordBytes(Operand::kBf16);
  const u32 tile_m = GroupX() % args.tiles_m, tile_n = GroupX() / args.tiles_m, lane = Lane(), wave = WaveIndex();
  const u32 first_m = wave % 2 * kSide, first_n = wave / 2 * kSide;
  const u32 first = GroupY() * args.steps_per_split;
  const u32 end = args.steps - first < args.steps_per_split ? args.steps : first + args.steps_per_split;
  const u32 panel_w = args.steps * kRecordW, panel_a = args.steps * args.terms * kRecordA;
  const Stream w(static_cast<const u8*>(args.w) + static_cast<u64>(tile_n) * panel_w, panel_w);
  const Stream a(static_cast<const u8*>(args.a) + static_cast<u64>(tile_m) * panel_a, panel_a);

  f32x4 sum[kSide][kSide];  // [of W][of A]
  Unroll<0, kSide * kSide>(
      [&](auto q) __attribute__((always_inline)) { sum[q.value / kSide][q.value % kSide] = f32x4{0, 0, 0, 0}; });
  using Weights = WeightStep<Mma, kSide>;
  Weights weights;
  weights.Load(w, first * kRecordW, first_n);
  for (u32 step = first; step < end; ++step) {
    const Weights now = weights;
    const i32 scales = static_cast<i32>(static_cast<u32>(now.scales) >> (8 * first_n));
    weights.Load(w, step + 1 < end ? (step + 1) * kRecordW : kBehind, first_n);
    for (u32 term = 0; term < args.terms; ++term) {
      const u32 at = (step * args.terms + term) * kRecordA + first_m * FragmentBytes(Operand::kBf16) + lane * kLaneSlot;
      typename Mma::Activation activation[kSide][Mma::kParts];
      Unroll<0, kSide * Mma::kParts>([&](auto i) __attribute__((always_inline)) {
        Mma::template Insert<0>(activation[i.value / Mma::kParts][i.value % Mma::kParts],
                                a.Slot(at + i.value * kSlotBytes));
      });
      Unroll<0, Mma::kParts * kSide * kSide>([&](auto q) __attribute__((always_inline)) {
        constexpr int part = q.value / (kSide * kSide), n = q.value / kSide % kSide, m = q.value % kSide;
        constexpr int kSlot = n * Weights::kSlots + part * Weights::kSlots / Mma::kParts;
        sum[n][m] = Mma::template Multiply<part, 0, n, 0>(now.slot[kSlot], scales, activation[m][part], 0, sum[n][m]);
      });
    }
  }
  Unroll<0, kSide * kSide>([&](auto q) __attribute__((always_inline)) {
    constexpr int n = q.value / kSide, m = q.value % kSide;
    const u32 row = tile_m * kPanelRows + (first_m + m) * kFragmentRows + lane % 16;
    const u32 column = tile_n * kPanelRows + ColumnOfRow(first_n + n, lane / 16 * 4);
    StoreColumns(args, row, column, sum[n][m]);
  });
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_BYTE_TILE_H_
