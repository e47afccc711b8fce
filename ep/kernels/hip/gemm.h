// The tiled GEMM: one loop for every tile, operand format and architecture. tile.h decides the schedule; a policy
// (mma_<arch>.h) multiplies; copy.h fills LDS. docs/mi355x.md has the picture.
#ifndef MXORT_KERNELS_HIP_GEMM_H_
#define MXORT_KERNELS_HIP_GEMM_H_

#include "kernels/hip/args.h"
#include "kernels/hip/copy.h"
#include "kernels/hip/epilogue.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/tile.h"

namespace mxort::hip {

// Fills LDS stages of one wave, in order. A wave's part of a stage is fixed; only scalar offsets move.
template <class T>
struct Loader {
  i32x4 a, w;  // buffers of this workgroup's panels
  u32 bytes_a, bytes_w;
  u32 offset_a, offset_w;  // the lane's own byte of the wave's part, at step 0
  u32 lds_a, lds_w;        // where the wave's part begins in stage 0
  u32 offset_scale[T::kWaveScales], lds_scale[T::kWaveScales];
  bool scale_of_a[T::kWaveScales];
  u32 step_w, step_scale[T::kWaveScales];  // which of the stage's U steps the part belongs to
  u32 fill_a, fill_w, stage;               // lds_a, lds_w in the stage that is being filled, and that stage
  u32 step, end, third;

  static constexpr int kLoadsA = T::kWaveSlotsA * kLoadsPerSlot, kLoadsW = T::kWaveSlotsW * kLoadsPerSlot;
  static constexpr int kLoads = kLoadsA + kLoadsW + T::kWaveScales;
  // A wave loads one whole record of each operand: its codes and scales then share a base.
  static constexpr bool kWhole = HasScales(T::kOperand) && T::kWaveSlotsA == T::kSlotsA &&
                                 T::kWaveSlotsW == T::kSlotsW && T::kScalesA == T::kWaves && T::kScalesW == T::kWaves;

  MXORT_METHOD void Init(const GemmArgs& args, TileIndex tile, u32 lds, u32 first_step, u32 last_step) {
    const u32 wave = WaveIndex(), lane = Lane();
    const u32 panel_a = args.steps * args.terms * T::kRecordA, panel_w = args.steps * T::kRecordW;
    // Whole records: the wave's own panel is its buffer, and all its loads share the lane's offsets.
    const u32 first_a = tile.m * T::kPanelsM + (kWhole ? wave % T::kPanelsM : 0), most_a = kWhole ? 1 : T::kPanelsM;
    const u32 first_w = tile.n * T::kPanelsN + (kWhole ? wave % T::kPanelsN : 0), most_w = kWhole ? 1 : T::kPanelsN;
    bytes_a = PanelsIn(first_a, args.m, most_a) * panel_a;
    bytes_w = PanelsIn(first_w, args.n, most_w) * panel_w;
    a = Buffer(static_cast<const u8*>(args.a) + static_cast<u64>(first_a) * panel_a, bytes_a);
    w = Buffer(static_cast<const u8*>(args.w) + static_cast<u64>(first_w) * panel_w, bytes_w);
    third = (65536 + args.terms - 1) / args.terms;
    step = first_step - T::kSteps, end = last_step;

    const u32 slot_a = wave * T::kWaveSlotsA, record_a = slot_a / T::kSlotsA;
    const u32 inside_a = slot_a % T::kSlotsA * kSlotBytes;
    offset_a = lane * kCopyBytes + (kWhole ? 0 : record_a % T::kPanelsM * panel_a + inside_a) +
               (T::kSteps == 1 ? 0 : record_a / T::kPanelsM * T::kRecordA);
    lds_a = lds + record_a * T::kRecordA + inside_a;

    const u32 slot_w = wave * T::kWaveSlotsW, record_w = slot_w / T::kSlotsW;
    const u32 inside_w = slot_w % T::kSlotsW * kSlotBytes;
    step_w = T::kSteps == 1 ? 0 : record_w / T::kPanelsN;
    offset_w = lane * kCopyBytes + (kWhole ? 0 : record_w % T::kPanelsN * panel_w + inside_w);
    lds_w = lds + T::kStageW + record_w * T::kRecordW + inside_w;

    Unroll<0, T::kWaveScales>([&](auto j) __attribute__((always_inline)) {
      const u32 index = wave + T::kWaves * j.value;
      const bool of_a = IsScaleOfA<j.value>(index), dead = T::kDeadRecords != 0 && index >= T::kScalesA + T::kScalesW;
      const u32 record = of_a ? index : dead ? 0 : index - T::kScalesA;
      const u32 panels = of_a ? T::kPanelsM : T::kPanelsN;
      scale_of_a[j.value] = of_a;
      step_scale[j.value] = T::kSteps == 1 ? 0 : record / panels;
      const u32 own = record % panels * (of_a ? panel_a : panel_w);
      const u32 own_whole =
          j.value == 0 && T::kSteps > 1 ? record / T::kPanelsM * T::kRecordA : 0;  // as offset_a, offset_w
      offset_scale[j.value] = lane * 4 + (kWhole ? own_whole : own);
      const u32 at = of_a ? record * T::kRecordA : T::kStageW + record * T::kRecordW;
      const u32 dead_at = T::kStageDead + (index - T::kScalesA - T::kScalesW) * kScaleRecordBytes;
      lds_scale[j.value] = lds + (dead ? dead_at : at);
    });
    Unroll<0, 3>([&](auto i) __attribute__((always_inline)) { Advance<i.value>(0); });
  }

  // How many of the panels from `first` on exist, at most `most`.
  MXORT_DEVICE u32 PanelsIn(u32 first, u32 extent, u32 most) {
    const u32 all = (extent + kPanelRows - 1) / kPanelRows;
    const u32 end = first + most < all ? first + most : all;
    return end - (first < all ? first : all);
  }
  // A scale load is of A for some waves and of W for others, or of one for all: then a constant.
  template <int kScale>
  MXORT_DEVICE bool IsScaleOfA(u32 index) {
    if constexpr ((kScale + 1) * T::kWaves <= T::kScalesA) return true;
    if constexpr (kScale * T::kWaves >= T::kScalesA) return false;
    return index < T::kScalesA;
  }
  // The weights' record that step s multiplies: s / terms, exact for s < 32768 and terms <= 3.
  MXORT_METHOD u32 WeightOffset(u32 s) const { return (s * third >> 16) * T::kRecordW; }

  // Loads of a stage: scales of A, codes of A, then of the weights, where records are whole (m0 changes least), else
  // codes and then scales.
  static constexpr int kFirstW = kLoadsA + kWhole, kFirstScale = kFirstW + kWhole + kLoadsW;
  static constexpr int ByteA(int load) { return T::kScaleA + (load - kWhole) * kWave * kCopyBytes; }
  static constexpr int ByteW(int load) { return T::kScaleW + (load - kFirstW - kWhole) * kWave * kCopyBytes; }

  // What m0 is for load number kLoad, and whether that differs from the load before.
  template <int kLoad>
  MXORT_METHOD u32 M0() const {
    if constexpr (kWhole && kLoad == 0) {
      return fill_a;
    } else if constexpr (kWhole && kLoad == kFirstW) {
      return fill_w;
    } else if constexpr (kLoad < kFirstW) {
      return fill_a + ByteA(kLoad) / 4096 * 4096;
    } else if constexpr (kLoad < kFirstScale) {
      return fill_w + ByteW(kLoad) / 4096 * 4096;
    } else {
      return lds_scale[kLoad - kLoadsA - kLoadsW] + stage;
    }
  }
  static constexpr bool ChangesM0(int load) {
    if (load == 0 || load == kFirstW || load >= kFirstScale) return true;
    if (kWhole && (load == 1 || load == kFirstW + 1)) return false;
    const int byte = load < kFirstW ? ByteA(load) : ByteW(load);
    return byte / 4096 != (byte - kWave * kCopyBytes) / 4096;
  }

  // Load number kLoad of the current stage. kReady: m0 was set before, by Announce.
  template <int kLoad, bool kReady>
  MXORT_METHOD void Issue() const {
    constexpr bool kWait = ChangesM0(kLoad) && !kReady;
    if constexpr (kWhole && kLoad == 0) {
      CopyScales<kWait>(fill_a, a, offset_scale[0], step * T::kRecordA);
    } else if constexpr (kWhole && kLoad == kFirstW) {
      CopyScales<kWait>(fill_w, w, offset_scale[1], WeightOffset(step + step_w));
    } else if constexpr (kLoad < kFirstW) {
      Slot<ByteA(kLoad), kWait>(fill_a, a, offset_a, step * T::kRecordA);
    } else if constexpr (kLoad < kFirstScale) {
      Slot<ByteW(kLoad), kWait>(fill_w, w, offset_w, WeightOffset(step + step_w));
    } else {
      constexpr int j = kLoad - kLoadsA - kLoadsW;
      const bool of_a = scale_of_a[j];
      const u32 s = step + step_scale[j];
      CopyScales<kWait>(M0<kLoad>(), of_a ? a : w, offset_scale[j], of_a ? s * T::kRecordA : WeightOffset(s));
    }
  }
  // Sets m0 for a load that follows after other instructions.
  template <int kLoad>
  MXORT_METHOD void Announce() const {
    if constexpr (ChangesM0(kLoad)) SetM0(M0<kLoad>());
  }
  // The instruction's offset field (12 bits) advances memory and LDS alike: four kilobytes are reached without changing
  // m0 or the lane's offset.
  template <int kByte, bool kWait>
  MXORT_DEVICE void Slot(u32 lds, i32x4 buffer, u32 offset, u32 scalar_offset) {
    constexpr int kField = kByte % 4096, kRest = kByte - kField;
    CopySlot<kField, kWait>(lds + kRest, buffer, offset, scalar_offset + kRest);
  }
  // On to the next stage, which lies at `next` in LDS: three chores.
  template <int kChore>
  MXORT_METHOD void Advance(u32 next) {
    if constexpr (kChore == 0) {
      step = OpaqueScalar(step + T::kSteps);
      stage = next;
    } else if constexpr (kChore == 1) {
      fill_a = lds_a + stage, fill_w = lds_w + stage;
      if constexpr (kWhole) fill_a = OpaqueScalar(fill_a), fill_w = OpaqueScalar(fill_w);
    } else {  // past the last step the buffers are empty: the loads are still counted but fetch nothing
      a[2] = static_cast<i32>(step < end ? bytes_a : 0);
      w[2] = static_cast<i32>(step < end ? bytes_w : 0);
    }
  }
};

// The registers a wave multiplies from, and where it reads them in LDS.
template <class T>
struct Fragments {
  using Mma = typename T::Mma;
  i32x4 weight[T::kUnitsW];
  typename Mma::Activation activation[T::kUnitsA];
  i32 weight_scale[T::kUnitsWS], activation_scale[T::kUnitsAS == 0 ? 1 : T::kUnitsAS];
  u32 at_w, at_a, at_ws, at_as;  // the lane's addresses in the stage that is being read
  u32 shift_w, shift_a;

  MXORT_METHOD void Init(u32 lds) {
    const u32 wave = WaveIndex(), lane = Lane();
    const u32 m = wave % T::kWavesM * T::kFragM, n = wave / T::kWavesM * T::kFragN;  // first fragment
    const u32 record_a = lds + m / kFragments * T::kRecordA;
    const u32 record_w = lds + T::kStageW + n / kFragments * T::kRecordW;
    at_a = Opaque(record_a + m % kFragments * FragmentBytes(T::kOperand) + lane * kLaneSlot);
    at_w = Opaque(record_w + n % kFragments * FragmentBytes(Operand::kFp4) + lane * kLaneSlot);
    at_as = Opaque(record_a + lane * 4);
    at_ws = Opaque(record_w + lane * 4);
    shift_a = m % kFragments * 8, shift_w = n % kFragments * 8;
  }
  // One of four chores: on to another stage.
  template <int kChore>
  MXORT_METHOD void Move(u32 bytes) {
    if constexpr (kChore == 0) at_w = Opaque(at_w + bytes);
    if constexpr (kChore == 1) at_ws = Opaque(at_ws + bytes);
    if constexpr (kChore == 2) at_a = Opaque(at_a + bytes);
    if constexpr (kChore == 3 && T::kUnitsAS != 0) at_as = Opaque(at_as + bytes);
  }

  template <int kUnit, int kPart>
  MXORT_METHOD void Read() {
    if constexpr (kUnit < T::kFirstA) {
      constexpr int u = kUnit / T::kFragN, n = kUnit % T::kFragN;
      constexpr int kAt = (u * T::kPanelsN + n / kFragments) * T::kRecordW + T::kScaleW + n % kFragments * kSlotBytes;
      weight[kUnit] = ReadLds<i32x4>(at_w + kAt);
    } else if constexpr (kUnit < T::kFirstWS) {
      constexpr int index = kUnit - T::kFirstA, m = index % T::kUnitM * T::kUnitFragments;
      constexpr int substep = index / T::kUnitM, u = substep / T::kParts;
      constexpr int kAt =
          (u * T::kPanelsM + m / kFragments) * T::kRecordA + T::kScaleA + m % kFragments * FragmentBytes(T::kOperand);
      Mma::template Insert<kPart>(activation[index],
                                  ReadLds<i32x4>(at_a + kAt + (substep % T::kParts + kPart) * kSlotBytes));
    } else if constexpr (kUnit < T::kFirstAS) {
      constexpr int index = kUnit - T::kFirstWS, u = index / T::kPanelsOfN, panel = index % T::kPanelsOfN;
      weight_scale[index] = Shift<T::kFragN>(ReadLds<i32>(at_ws + (u * T::kPanelsN + panel) * T::kRecordW), shift_w);
    } else {
      constexpr int index = kUnit - T::kFirstAS, u = index / T::kPanelsOfM, panel = index % T::kPanelsOfM;
      activation_scale[index] =
          Shift<T::kFragM>(ReadLds<i32>(at_as + (u * T::kPanelsM + panel) * T::kRecordA), shift_a);
    }
  }
  // Where a wave begins inside a panel, its first fragment's scale becomes byte 0.
  template <int kFrag>
  MXORT_DEVICE i32 Shift(i32 scales, u32 shift) {
    if constexpr (kFrag % kFragments == 0) return scales;
    return static_cast<i32>(static_cast<u32>(scales) >> shift);
  }

  template <int kPosition>
  MXORT_METHOD void Multiply(f32x4 (&sum)[T::kFragN][T::kFragM]) {
    constexpr auto p = T::At(kPosition);
    constexpr int u = p.substep / T::kParts;
    const i32 scale = T::kUnitsAS == 0 ? 0 : activation_scale[u * T::kPanelsOfM + p.m / kFragments];
    sum[p.n][p.m] =
        Mma::template Multiply<p.substep % T::kParts, p.m % T::kUnitFragments, p.n % kFragments, p.m % kFragments>(
            weight[u * T::kFragN + p.n], weight_scale[u * T::kPanelsOfN + p.n / kFragments],
            activation[p.substep * T::kUnitM + p.m / T::kUnitFragments], scale, sum[p.n][p.m]);
  }
};

// Keeps an accumulator in the lower half of the register file (see Tile::kPinned).
MXORT_DEVICE void Pin(f32x4& x) { asm("" : "+v"(x)); }
// And, being volatile, keeps the multiplication that made it where it is written: instruction selection orders only
// what touches memory. The largest tile needs no such help.
MXORT_DEVICE void PinInOrder(f32x4& x) { asm volatile("" : "+v"(x)); }

// One tile of Y, over the split GroupY().
template <class T>
MXORT_DEVICE void GemmTile(const GemmArgs& args, TileIndex tile) {
  static MXORT_LDS __attribute__((aligned(16))) u8 memory[T::kLdsBytes];
  const LdsBytes lds = reinterpret_cast<LdsBytes>(reinterpret_cast<__UINTPTR_TYPE__>(&memory[0]));
  const u32 first = GroupY() * args.steps_per_split * args.terms;
  const u32 left = args.steps * args.terms - first, most = args.steps_per_split * args.terms;
  const u32 steps = left < most ? left : most;

  Loader<T> loader;
  loader.Init(args, tile, LdsAddress(lds), first, first + steps);
  Fragments<T> fragments;
  fragments.Init(LdsAddress(lds));
  f32x4 sum[T::kFragN][T::kFragM];
  Unroll<0, T::kFragN * T::kFragM>([&](auto q) __attribute__((always_inline)) {
    sum[q.value / T::kFragM][q.value % T::kFragM] = f32x4{0, 0, 0, 0};
  });

  constexpr int kLoads = Loader<T>::kLoads, kLate = T::kSplitColumns ? 0 : kLoads / 2;
  SettleScalars();
  // Before the loop: stages 0 .. S - 2, and what iteration -1 would have loaded in its second phase.
  Unroll<0, (T::kStages - 1) * kLoads>([&](auto i) __attribute__((always_inline)) {
    loader.template Issue<i.value % kLoads, false>();
    if constexpr (i.value % kLoads == kLoads - 1) {
      constexpr u32 kNext = (i.value / kLoads + 1) * T::kStageBytes;
      Unroll<0, 3>([&](auto chore) __attribute__((always_inline)) { loader.template Advance<chore.value>(kNext); });
    }
  });
  Unroll<0, kLate>([&](auto i) __attribute__((always_inline)) { loader.template Issue<i.value, false>(); });
  WaitLoadsAndReads<(T::kStages - 2) * kLoads + kLate>();
  Barrier();
  Unroll<0, T::kReads>([&](auto i) __attribute__((always_inline)) {
    constexpr auto read = T::kSchedule.read[i.value];
    if constexpr (T::KindOf(read.unit) != T::Kind::kPhase2) fragments.template Read<read.unit, read.part>();
  });

  constexpr u32 kLast = (T::kStages - 1) * T::kStageBytes;
  u32 stage = 0, move = 0;
  // On to the next stage: the one just multiplied is filled again, the next one read.
  const auto chore = [&](auto i) __attribute__((always_inline)) {
    if constexpr (i.value == 0) move = OpaqueScalar(stage == kLast ? 0u - kLast : u32{T::kStageBytes});
    if constexpr (i.value >= 1 && i.value < 4) loader.template Advance<i.value - 1>(stage);
    if constexpr (i.value >= 4) fragments.template Move<i.value - 4>(move);
    if constexpr (i.value == 7) stage = OpaqueScalar(stage + move);
  };
  // A position: one multiplication, and what is issued behind it. The fence keeps the order as written here.
  const auto position = [&](auto q) __attribute__((always_inline)) {
    constexpr int kQ = q.value;
    fragments.template Multiply<kQ>(sum);
    if constexpr (T::kPinned == 0) PinInOrder(sum[T::At(kQ).n][T::At(kQ).m]);
    Unroll<T::kSchedule.before[kQ], T::kSchedule.before[kQ + 1]>([&](auto i) __attribute__((always_inline)) {
      constexpr auto read = T::kSchedule.read[i.value];
      fragments.template Read<read.unit, read.part>();
    });
    // Phase 1 ends the stage that phase 2 of the iteration before began.
    constexpr int kBegin = T::LoadsBefore(kQ, kLoads, kLate), kEnd = T::LoadsBefore(kQ + 1, kLoads, kLate);
    Unroll<kBegin, kEnd>([&](auto i) __attribute__((always_inline)) {
      constexpr bool kReady = Loader<T>::kWhole && i.value == kBegin && kQ != 0 && kQ != T::kPhase;
      loader.template Issue<(i.value + kLate) % kLoads, kReady>();
    });
    // Where the next position loads it finds m0 set: its multiplication lies between.
    constexpr int kNext = kQ + 1, kNextEnd = T::LoadsBefore(kQ + 2, kLoads, kLate);
    if constexpr (Loader<T>::kWhole && kNext != T::kPhase && kNext < T::kPositions && kNextEnd > kEnd) {
      loader.template Announce<(kEnd + kLate) % kLoads>();
    }
    Unroll<T::ChoresBefore(kQ), T::ChoresBefore(kQ + 1)>(chore);
    __builtin_amdgcn_sched_barrier(0);
  };
  // The loader is S - 1 stages ahead.
  const u32 stop = first + steps / T::kSteps * T::kSteps + (T::kStages - 1) * T::kSteps;
#pragma clang loop unroll(disable)
  while (loader.step != stop) {
    Unroll<0, T::kPhase>(position);
    // The next stage has arrived, and every wave has read what it needs of this one.
    WaitLoadsAndReads<(T::kStages - 2) * kLoads>();
    Barrier();
    Unroll<T::kPhase, T::kPositions>(position);
    Unroll<0, T::kPinned>([&](auto q)
                              __attribute__((always_inline)) { Pin(sum[q.value / T::kFragM][q.value % T::kFragM]); });
  }
  if constexpr (T::kSteps == 2) {  // an odd step: its registers were read in the last phase 2
    if (steps % 2 != 0) {
      Unroll<0, T::kPhase>([&](auto q) __attribute__((always_inline)) { fragments.template Multiply<q.value>(sum); });
    }
  }
  WaitLoadsAndReads<0>();  // the memory of LDS is used again below, and by others after the end
  StoreTile<T>(args, tile, lds, sum);
}

template <class T>
MXORT_DEVICE void Gemm(const GemmArgs& args) {
  GemmTile<T>(args, OrderTiles(GroupX(), args.tiles_m, args.tiles_n));
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_GEMM_H_
