// A decode step's product in one launch: up to 16 rows of A, which the kernel rotates and quantises itself, all of K in
// one workgroup, and what follows the product behind it. Bound by reading the weights, as skinny.h: every wave has the
// loads of its first steps under way before it prepares its part of A.
//
// Every workgroup prepares all rows again, so this is for products of few columns, or of few workgroups a compute unit;
// select.cc weighs it against a preparation of its own (skinny.h). The arithmetic of the preparation is that of
// prepare.h, bit for bit. A lies in LDS without the rows that do not exist:
//
//   unit   a block of 32 of one row, in one term: [step][term][4 blocks][row], each UnitBytes; behind all, a byte of
//          scale each. Lanes of rows that do not exist multiply row 0 again, and their sums are dropped.
#ifndef MXORT_KERNELS_HIP_DIRECT_H_
#define MXORT_KERNELS_HIP_DIRECT_H_

#include "kernels/hip/activate.h"
#include "kernels/hip/args.h"
#include "kernels/hip/norm.h"
#include "kernels/hip/prepare.h"
#include "kernels/hip/skinny.h"

namespace mxort::hip {

#if defined(__gfx950__)
inline constexpr bool kHasScaledMma = true;
#else
inline constexpr bool kHasScaledMma = false;  // FP4 weights too are multiplied as bf16 then
#endif
inline constexpr u32 kDirectWaves = kDirectThreads / kWave;

// The workgroup's A in LDS.
template <Operand kOperand>
struct PreparedRows {
  u32 begin, scales;  // addresses
  u32 m, terms;

  MXORT_METHOD PreparedRows(const DirectArgs& args, u32 address)
      : begin(address),
        scales(address + args.steps * args.terms * kStepBlocks * args.m * UnitBytes(kOperand)),
        m(args.m),
        terms(args.terms) {}

  MXORT_METHOD u32 Unit(u32 step, u32 term, u32 block, u32 row) const {
    return ((step * terms + term) * kStepBlocks + block) * m + row;
  }

  MXORT_METHOD void Store(u32 unit, const Block& block) const {
    constexpr int kWords = LaneBytes(kOperand) / 4;
    u32 w[kWords];
    Pack<kWords>(block.code, w);
    const u32 at = begin + unit * UnitBytes(kOperand);
    Unroll<0, kWords / 2>([&](auto i) __attribute__((always_inline)) {
      WriteLds(at + i.value * 8, u32x2{w[2 * i.value], w[2 * i.value + 1]});
    });
    WriteLds(scales + unit, block.scale);
  }
  MXORT_METHOD void Store(u32 unit, const u32 (&v)[kBlockSize]) const {
    const u32 at = begin + unit * UnitBytes(kOperand);
    Unroll<0, kBlockSize / 8>([&](auto i) __attribute__((always_inline)) {
      u32x4 w;
      Unroll<0, 4>([&](auto j) __attribute__((always_inline)) {
        constexpr int e = 8 * i.value + 2 * j.value;
        w[j.value] = v[e] | (v[e + 1] << 16);
      });
      WriteLds(at + i.value * kLaneSlot, w);
    });
  }

  // 16 bytes of the fragment of this lane (layout.h).
  template <int kSlot>
  MXORT_METHOD i32x4 Slot(u32 step, u32 term) const {
    const u32 group = Lane() / 16;
    if constexpr (kOperand == Operand::kFp8E4M3) {
      const u32 unit = Unit(step, term, 2 * kSlot + group / 2, Row());
      return ReadLds<i32x4>(begin + unit * UnitBytes(kOperand) + group % 2 * kLaneSlot);
    }
    return ReadLds<i32x4>(begin + Unit(step, term, group, Row()) * UnitBytes(kOperand) + kSlot * kLaneSlot);
  }
  MXORT_METHOD i32 Scale(u32 step, u32 term) const {
    return HasScales(kOperand) ? ReadLds<u8>(scales + Unit(step, term, Lane() / 16, Row())) : 0;
  }
  MXORT_METHOD u32 Row() const { return Lane() % 16 < m ? Lane() % 16 : 0; }
};

// One block of a row, rotated, to its unit of every term. kEmulates: bf16 operands may be quantised values.
template <Operand kOperand, bool kEmulates>
MXORT_DEVICE void PrepareUnit(const DirectArgs& args, const PreparedRows<kOperand>& rows, u32 row, u32 block,
                              float (&x)[kBlockSize]) {
  const u32 step = block / kStepBlocks, of_step = block % kStepBlocks;
  const auto quantized = [&](u32 term, const Block& b)
                             __attribute__((always_inline)) { rows.Store(rows.Unit(step, term, of_step, row), b); };
  const auto values = [&](u32 term, const u32(&v)[kBlockSize])
                          __attribute__((always_inline)) { rows.Store(rows.Unit(step, term, of_step, row), v); };
  if constexpr (kOperand == Operand::kFp4) {
    QuantizeTerms<E2M1, 1>(1, x, quantized);
  } else if constexpr (kOperand == Operand::kFp6E2M3) {
    QuantizeTerms<E2M3, 2>(args.terms, x, quantized);
  } else if constexpr (kOperand == Operand::kFp6E3M2) {
    QuantizeTerms<E3M2, 1>(1, x, quantized);
  } else if constexpr (kOperand == Operand::kFp8E4M3) {
    QuantizeTerms<E4M3, 1>(1, x, quantized);
  } else if (!kEmulates || args.emulated == kNoElement) {
    SplitBFloat16(args.terms, x, values);
  } else {
    u32 v[kBlockSize];
    switch (static_cast<Operand>(args.emulated)) {
      case Operand::kFp4:
        QuantizedBFloat16<E2M1>(x, v);
        break;
      case Operand::kFp6E2M3:
        QuantizedBFloat16<E2M3>(x, v);
        break;
      case Operand::kFp6E3M2:
        QuantizedBFloat16<E3M2>(x, v);
        break;
      default:
        QuantizedBFloat16<E4M3>(x, v);
    }
    values(0, v);
  }
}

// A value as if nothing were known of it, and the kernel's arguments, read here and now: what is held, or made of them,
// in scalar registers from the beginning of the kernel to its end pushes others out.
MXORT_DEVICE u32 Again(u32 x) {
  asm volatile("" : "+s"(x));
  return x;
}
MXORT_DEVICE DirectArgs ReadAgain() {
  u64 at = reinterpret_cast<u64>(__builtin_amdgcn_kernarg_segment_ptr());
  asm volatile("" : "+s"(at));
  return *reinterpret_cast<__attribute__((address_space(4))) const DirectArgs*>(at);
}

// Mean and inverse deviation of the rows of a normalisation, in LDS: those that its own kernel finds, bit for bit.
struct RowMoments {
  LdsFloats slots;  // of teams, then two floats a row
  static constexpr u32 kTeams = kDirectThreads / kRowThreads, kTeamSlots = kReductions * kRowWaves;
  static constexpr u32 kFloats = kTeams * kTeamSlots + 2 * kFragmentRows;

  MXORT_METHOD LdsFloats Of(u32 row) const { return slots + kTeams * kTeamSlots + 2 * row; }
  MXORT_METHOD Moments Load(u32 row) const { return {Of(row)[0], Of(row)[1]}; }

  template <bool kMany>
  MXORT_METHOD void Find(const NormArgs& args, u32 row, bool wanted, const Team<kMany>& team) const {
    const Moments moments = MomentsOf(NormRow(args, row), team);
    if (!wanted || team.First() != 0) return;
    Of(row)[0] = moments.mean;
    Of(row)[1] = moments.inverse;
  }
  MXORT_METHOD void FindAll(const NormArgs& args, u32 rows) const {
    if (args.shape.n <= kWaveRowMost) {
      for (u32 row = WaveIndex(); row < rows; row += kDirectWaves) Find(args, row, true, Team<false>{nullptr});
    } else {
      const u32 of = Uniform(Thread() / kRowThreads);
      for (u32 row = of; row < rows + of; row += kTeams) {  // as many turns for every team: they meet at barriers
        Find(args, row < rows ? row : 0, row < rows, Team<true>{slots + of * kTeamSlots});
        Synchronize();
      }
    }
    Synchronize();
  }
};

// What makes a block of the operand out of memory, one after the other; null: left out.
enum Part : u32 { kX, kSkip, kBias, kScale, kShift, kParts };

// A block of a row: of A, or of what the normalisation makes of its row, rounded to the type that it gives it.
MXORT_DEVICE void LoadOperand(const RowMoments& all, u32 row, u32 k, float (&x)[kBlockSize]) {
  const bool normalised = ReadAgain().normalised != 0;
  // A loop, because a load is long: every type, wide and narrow.
#pragma clang loop unroll(disable)
  for (u32 part = kX; part < (normalised ? kParts : kX + 1); ++part) {
    const DirectArgs now = ReadAgain();
    const NormArgs& norm = now.norm;
    const void* from = part == kX       ? now.a
                       : part == kSkip  ? norm.skip
                       : part == kBias  ? norm.bias
                       : part == kScale ? norm.scale
                                        : norm.shift;
    if (from) {
      const u32 of_part = part == kX ? row : part == kSkip ? static_cast<u32>(row % norm.skip_rows) : 0;
      const i32 left = static_cast<i32>(now.k) - static_cast<i32>(k);  // may be negative
      float other[kBlockSize];
      LoadBlock(part < kScale ? now.type : norm.scale_type, from, left > 0 ? static_cast<u64>(of_part) * now.k + k : 0,
                left, now.k, other);
      Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
        float& v = x[i.value];
        v = part == kX ? other[i.value] : part == kScale ? v * other[i.value] : v + other[i.value];
      });
    }
    if (part == kBias) {
      const Moments moments = all.Load(row);
      Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
        const float v = norm.rounds ? Rounded(now.type, x[i.value]) : x[i.value];
        x[i.value] = (v - moments.mean) * moments.inverse;
      });
    }
  }
  if (!normalised) return;
  const DirectArgs now = ReadAgain();
  const i32 left = static_cast<i32>(now.k) - static_cast<i32>(k);
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
    x[i.value] = i.value < left ? Rounded(now.norm.out_type, x[i.value]) : 0.0f;
  });
}

// A thread takes a block of 32 of one row; a block's neighbours in a rotation are those of the neighbouring lanes.
// `first`: the one workgroup that stores what other nodes want of the normalisation.
template <bool kEmulates, Operand kOperand>
MXORT_DEVICE void PrepareRows(u32 lds, const RowMoments& moments, bool first) {
  if (ReadAgain().normalised) {
    moments.FindAll(ReadAgain().norm, ReadAgain().m);
    if (first) {
      const DirectArgs now = ReadAgain();
      for (u32 row = 0; row < now.m; ++row) {
        StoreNormalised(NormRow(now.norm, row), moments.Load(row), Thread(), kDirectThreads);
      }
    }
  }
  const u32 blocks = ReadAgain().steps * kStepBlocks, units = blocks * ReadAgain().m;
#pragma clang loop unroll(disable)
  for (u32 i = Thread(); i < units; i += kDirectThreads) {
    const u32 row = i / blocks, block = i % blocks;
    float x[kBlockSize];
    LoadOperand(moments, row, block * kBlockSize, x);
    const DirectArgs now = ReadAgain();
    Rotate<1>(now.rotation, x);
    PrepareUnit<kOperand, kEmulates>(now, PreparedRows<kOperand>(now, lds), row, block, x);
  }
}

template <class Mma, int kCount>
MXORT_DEVICE void MultiplyPrepared(const WeightStep<Mma, kCount>& w, i32 scales,
                                   const PreparedRows<Mma::kOperand>& rows, u32 step, u32 term, f32x4 (&sum)[kCount]) {
  constexpr int kReads = Mma::kParts > 1 ? 1 : UnitBytes(Mma::kOperand) / kLaneSlot;
  const i32 scale = rows.Scale(step, term);
  Unroll<0, Mma::kParts>([&](auto part) __attribute__((always_inline)) {
    typename Mma::Activation activation;
    Unroll<0, kReads>([&](auto i) __attribute__((always_inline)) {
      Mma::template Insert<i.value>(activation, rows.template Slot<part.value + i.value>(step, term));
    });
    Unroll<0, kCount>([&](auto n) __attribute__((always_inline)) {
      constexpr int kSlots = WeightStep<Mma>::kSlots, kSlot = n.value * kSlots + part.value * kSlots / Mma::kParts;
      sum[n.value] =
          Mma::template Multiply<part.value, 0, n.value, 0>(w.slot[kSlot], scales, activation, scale, sum[n.value]);
    });
  });
}

// Adds the sums of all waves, and stores what follows the product. `lds`: of the waves' sums, [wave][row][column].
template <int kCount>
MXORT_DEVICE void AddAndFinish(const DirectArgs& args, u32 lds, u32 panel, u32 first, const f32x4 (&sum)[kCount]) {
  constexpr u32 kWidth = kFragmentRows * kCount;
  const u32 lane = Lane(), size = args.m * kWidth;
  if (lane % 16 < args.m) {
    const u32 at = lds + (WaveIndex() * size + lane % 16 * kWidth + lane / 16 * 4 * kCount) * 4;
    Unroll<0, kCount>([&](auto n) __attribute__((always_inline)) { WriteLds(at + n.value * 16, sum[n.value]); });
  }
  Synchronize();
  const auto activation = static_cast<Follow>(args.activation);
  const u32 width = args.gated ? kWidth / 2 : kWidth;
  const u32 columns = args.gated ? panel * kGateColumns : panel * kPanelRows;  // before this panel's
  for (u32 i = Thread(); i < args.m * width; i += kDirectThreads) {
    const u32 row = i / width, local = i % width;
    const u32 column = kCount == kFragments ? local : ColumnOfRow(first, local);
    if (columns + column >= args.y_columns) continue;
    const auto product = [&](u32 n) __attribute__((always_inline)) {
      float total = 0;
      Unroll<0, kDirectWaves>([&](auto wave) __attribute__((always_inline)) {
        total += ReadLds<float>(lds + (wave.value * size + row * kWidth + n) * 4);
      });
      const u32 c = panel * kPanelRows + column + (n == local ? 0 : kGateColumns);
      return total * args.column_scale[c] + args.bias[c];
    };
    float y = Followed(activation, product(local));
    if (args.gated) y *= product(local + kWidth / 2);
    StoreOne(args.y_type, args.y, static_cast<u64>(row) * args.y_columns + columns + column, y);
  }
}

// The columns of a workgroup: kCount fragments of a panel from `first` on.
template <class Mma, int kCount>
struct Place {
  u32 tile, panel, first;
  MXORT_METHOD explicit Place(const DirectArgs& args)
      : tile(OrderTiles(Again(GroupX()), 1, args.tiles).n),
        panel(tile / (kFragments / kCount)),
        first(tile % (kFragments / kCount) * kCount) {}
  MXORT_METHOD Stream Weights(const DirectArgs& args) const {
    const u64 bytes = static_cast<u64>(args.steps) * WeightRecordBytes(Mma::kWeight);
    return Stream(static_cast<const u8*>(args.w) + panel * bytes, static_cast<u32>(bytes));
  }
};

// kCount: fragments of 16 columns that a workgroup computes, 1 or 4.
template <class Mma, int kCount>
MXORT_DEVICE void Direct(const DirectArgs& args) {
  static MXORT_LDS __attribute__((aligned(16))) u8 memory[kDirectLds];
  static MXORT_LDS float of_rows[RowMoments::kFloats];
  // In flight in a wave: what is loaded takes 32 to 64 registers, beside those of a preparation.
  constexpr int kSlots = WeightSlots(Mma::kWeight);
  constexpr u32 kSteps = kCount == 1 ? 8 / kSlots : kSlots == 1 ? 4 : 1;
  constexpr u32 kRecord = WeightRecordBytes(Mma::kWeight);
  constexpr bool kEmulates = Mma::kWeight != WeightCode::kFp4 || !kHasScaledMma;
  const u32 lds = LdsAddress((LdsBytes)memory);
  WeightStep<Mma, kCount> weights[kSteps];
  const auto load = [&](const DirectArgs& from, const Place<Mma, kCount>& at, u32 step) __attribute__((always_inline)) {
    const Stream w = at.Weights(from);
    Unroll<0, static_cast<int>(kSteps)>([&](auto i) __attribute__((always_inline)) {
      const u32 s = step + i.value * kDirectWaves;
      weights[i.value].Load(w, s < from.steps ? s * kRecord : kBehind, at.first);  // behind the end: nothing is fetched
    });
  };
  {
    const Place<Mma, kCount> at(args);
    load(args, at, WaveIndex());
    PrepareRows<kEmulates, Mma::kOperand>(lds, RowMoments{(LdsFloats)of_rows}, at.tile == 0);
  }
  Synchronize();

  const DirectArgs now = ReadAgain();
  const Place<Mma, kCount> at(now);
  const PreparedRows<Mma::kOperand> rows(now, lds);
  f32x4 sum[kCount];
  Unroll<0, kCount>([&](auto n) __attribute__((always_inline)) { sum[n.value] = f32x4{0, 0, 0, 0}; });
  for (u32 step = Again(WaveIndex()); step < now.steps; step += kDirectWaves * kSteps) {
    Unroll<0, static_cast<int>(kSteps)>([&](auto i) __attribute__((always_inline)) {
      const u32 s = step + i.value * kDirectWaves;
      if (s < now.steps) {
        const i32 scales = static_cast<i32>(static_cast<u32>(weights[i.value].scales) >> (8 * at.first));
        for (u32 term = 0; term < now.terms; ++term) {
          MultiplyPrepared<Mma, kCount>(weights[i.value], scales, rows, s, term, sum);
        }
      }
    });
    load(now, at, step + kDirectWaves * kSteps);
  }
  Synchronize();  // the sums take the place of A
  AddAndFinish<kCount>(ReadAgain(), lds, at.panel, at.first, sum);
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_DIRECT_H_
