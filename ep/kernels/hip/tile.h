// Shape and schedule of the tiled GEMM: everything about it that is decided at compile time.
#ifndef MXORT_KERNELS_HIP_TILE_H_
#define MXORT_KERNELS_HIP_TILE_H_

#include "kernels/hip/layout.h"

namespace mxort::hip {

// A workgroup of WM x WN waves, each of MT x NT fragments (16 activation rows, 16 output columns); a stage of LDS holds
// U steps of 128 k of both operands, and there are S stages.
template <class MmaPolicy, int WM, int WN, int MT, int NT, int U, int S>
struct Tile {
  using Mma = MmaPolicy;
  static constexpr Operand kOperand = Mma::kOperand;
  static constexpr int kWavesM = WM, kWavesN = WN, kFragM = MT, kFragN = NT, kSteps = U, kStages = S;
  static constexpr int kParts = Mma::kParts;
  static constexpr int kWaves = WM * WN, kThreads = 64 * kWaves;
  static constexpr int kRows = WM * MT * kFragmentRows, kColumns = WN * NT * kFragmentRows;
  static constexpr int kPanelsM = kRows / kPanelRows, kPanelsN = kColumns / kPanelRows;
  static_assert(kPanelsM * kPanelRows == kRows && kPanelsN * kPanelRows == kColumns, "whole panels");
  static_assert((MT % 4 == 0 || 4 % MT == 0) && (NT % 4 == 0 || 4 % NT == 0),
                "fragments of a wave lie in whole panels");
  static_assert(S >= 2, "a stage is filled while another is read");

  // A wave of the largest tile has 256 accumulator registers of its 512, of which instructions other than the matrix
  // ones see 256 ("VGPR"; the rest are "AGPR"). Left to itself clang 22 may copy some accumulators in every iteration;
  // told that half of them are VGPRs, it copies none and puts others in AGPRs. (Told that some are AGPRs, it takes all
  // 256 for them, has no room left for the order it wants, and spills.) tests/kernels_hip asserts what this reaches.
  static constexpr int kPinned = MT * NT < 64 ? 0 : MT * NT / 2;

  // ---- loads of one stage by one wave: code slots (1 KB) of A, of W, then scale records
  // ------------------------------
  static constexpr int kSlotsA = kFragments * LaneBytes(kOperand) / kLaneSlot;  // of a record
  static constexpr int kSlotsW = kFragments;
  static constexpr int kWaveSlotsA = U * kPanelsM * kSlotsA / kWaves, kWaveSlotsW = U * kPanelsN * kSlotsW / kWaves;
  static_assert(kSlotsA % kWaveSlotsA == 0 && kSlotsW % kWaveSlotsW == 0, "a wave's slots lie in one record");
  static constexpr int kScalesA = HasScales(kOperand) ? U * kPanelsM : 0, kScalesW = U * kPanelsN;
  static constexpr int kWaveScales = (kScalesA + kScalesW + kWaves - 1) / kWaves;
  // Where the records do not divide among the waves, the others load into a part of the stage that no one reads, so
  // that all waves count the same loads.
  static constexpr int kDeadRecords = kWaveScales * kWaves - kScalesA - kScalesW;

  // ---- LDS: a stage is the records [U][panel] of the activations, then those of the weights, then the dead ones
  // ------
  static constexpr int kRecordA = RecordBytes(kOperand), kRecordW = RecordBytes(Operand::kFp4);
  static constexpr int kScaleA = ScaleBytes(kOperand), kScaleW = kScaleRecordBytes;
  static constexpr int kStageW = U * kPanelsM * kRecordA;
  static constexpr int kStageDead = kStageW + U * kPanelsN * kRecordW;
  static constexpr int kStageBytes = kStageDead + kDeadRecords * kScaleRecordBytes;
  static constexpr int kLdsBytes = S * kStageBytes;

  // ---- schedule
  // ------------------------------------------------------------------------------------------------------ One
  // iteration multiplies a stage in kPositions steps, in two phases with a barrier between. Each register group is read
  // from LDS ("unit") after its last use and before its next one, so one set of registers is enough:
  //   units of phase 2 only: read in phase 1, from this iteration's stage
  //   all others:            read in phase 2, from the next stage, which the barrier has made visible
  // Phases are halves of the columns where a stage is one step (then each weight unit belongs to one phase), or halves
  // of the steps or parts.
  static constexpr int kSubsteps = U * kParts;
  static constexpr bool kSplitColumns = kSubsteps == 1;
  static constexpr int kPositions = kSubsteps * MT * NT, kPhase = kPositions / 2;
  static_assert(kSplitColumns ? NT % 2 == 0 : kSubsteps % 2 == 0, "two phases");

  struct Position {
    int substep, m, n;
  };
  static constexpr Position At(int q) {
    if (kSplitColumns) {  // phase, m, n in the half
      const int r = q % kPhase;
      return {0, r / (NT / 2), q / kPhase * (NT / 2) + r % (NT / 2)};
    }
    return {q / (MT * NT), q % MT, q / MT % NT};
  }

  // Units: fragments of W [U][NT], fragments (or pairs) of A [U * parts][MT], scale registers of W and A, one per panel
  // touched.
  static constexpr int kPanelsOfN = (NT + 3) / 4, kPanelsOfM = (MT + 3) / 4;
  static constexpr int kUnitsW = U * NT;
  static constexpr int kUnitFragments = Mma::kUnitFragments, kUnitM = MT / kUnitFragments, kUnitsA = kSubsteps * kUnitM;
  static_assert(MT % kUnitFragments == 0);
  static constexpr int kUnitsWS = U * kPanelsOfN, kUnitsAS = HasScales(kOperand) ? U * kPanelsOfM : 0;
  static constexpr int kFirstA = kUnitsW, kFirstWS = kFirstA + kUnitsA, kFirstAS = kFirstWS + kUnitsWS;
  static constexpr int kUnits = kFirstAS + kUnitsAS;

  static constexpr bool Uses(int unit, Position p) {
    const int u = p.substep / kParts;
    if (unit < kFirstA) return unit == u * NT + p.n;
    if (unit < kFirstWS) return unit - kFirstA == p.substep * kUnitM + p.m / kUnitFragments;
    if (unit < kFirstAS) return unit - kFirstWS == u * kPanelsOfN + p.n / 4;
    return unit - kFirstAS == u * kPanelsOfM + p.m / 4;
  }
  static constexpr int FirstUse(int unit) {
    int q = 0;
    while (!Uses(unit, At(q))) ++q;
    return q;
  }
  static constexpr int LastUse(int unit) {
    int q = kPositions - 1;
    while (!Uses(unit, At(q))) --q;
    return q;
  }
  enum class Kind { kPhase1, kPhase2, kBoth };
  static constexpr Kind KindOf(int unit) {
    return LastUse(unit) < kPhase ? Kind::kPhase1 : FirstUse(unit) >= kPhase ? Kind::kPhase2 : Kind::kBoth;
  }
  static constexpr int ReadsOf(int unit) { return unit >= kFirstA && unit < kFirstWS ? Mma::kUnitReads : 1; }

  // LDS reads in the order of the positions they follow. Units of one phase are read in the other, in the order of
  // their first use; units of both from their last use on. One read a position; what passes the end of the iteration is
  // read in the next one, from the same stage.
  static constexpr int kReads = kUnits + kUnitsA * (Mma::kUnitReads - 1);
  struct Read {
    int unit, part, slot;
  };
  struct Schedule {
    Read read[kReads];
    int before[kPositions + 1];  // reads in slots below
  };
  static constexpr Schedule MakeSchedule() {
    Read all[kReads] = {};
    int count = 0, next[2] = {0, kPhase};
    for (int q = 0; q < kPositions; ++q) {
      for (int unit = 0; unit < kUnits; ++unit) {
        if (FirstUse(unit) != q) continue;
        const Kind kind = KindOf(unit);
        for (int part = 0; part < ReadsOf(unit); ++part) {
          int slot = LastUse(unit) + part;
          if (kind != Kind::kBoth) {
            int& free = next[kind == Kind::kPhase1];
            const int last = (kind == Kind::kPhase1 ? kPositions : kPhase) - 1;
            slot = free < last ? free++ : last;
          }
          all[count++] = {unit, part, slot % kPositions};
        }
      }
    }
    Schedule s{};
    int done = 0;
    for (int q = 0; q < kPositions; ++q) {
      s.before[q] = done;
      for (int i = 0; i < kReads; ++i) {
        if (all[i].slot == q) s.read[done++] = all[i];
      }
    }
    s.before[kPositions] = done;
    return s;
  }
  static constexpr Schedule kSchedule = MakeSchedule();

  // Loads are spread over the first three quarters of phase 1 (and, where that would be crowded, over phase 2); what
  // moves on to the next stage ("chores") over the last quarter.
  static constexpr int kLoadPositions = kPhase * 3 / 4, kChores = 8;
  static constexpr int LoadsBefore(int q, int loads, int loads_in_phase2) {
    const int first = loads - loads_in_phase2;
    if (q <= kPhase) return q >= kLoadPositions ? first : first * q / kLoadPositions;
    return first + loads_in_phase2 * (q - kPhase) / kPhase;
  }
  static constexpr int ChoresBefore(int q) {
    if (q >= kPhase) return kChores;
    return q <= kLoadPositions ? 0 : kChores * (q - kLoadPositions) / (kPhase - kLoadPositions);
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_TILE_H_
