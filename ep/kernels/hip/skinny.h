// Up to 16 rows of A: bound by reading the weights, so every byte of them is read once, in order, straight to
// registers, 16 bytes a lane (scales 4). A workgroup computes one panel of 64 columns over a range of steps; its waves
// take the steps in turn and add their sums through LDS.
#ifndef MXORT_KERNELS_HIP_SKINNY_H_
#define MXORT_KERNELS_HIP_SKINNY_H_

#include "kernels/hip/args.h"
#include "kernels/hip/epilogue.h"
#include "kernels/hip/layout.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/prelude.h"

namespace mxort::hip {

inline constexpr u32 kSkinnyWaves = 4;
inline constexpr u32 kBehind = 0xFFFE0000u;  // an offset that no buffer reaches, with room for a record

// A raw buffer that the compiler knows: reads at offset >= bytes are zero.
struct Stream {
  __amdgpu_buffer_rsrc_t buffer;
  MXORT_METHOD Stream(const void* base, u32 bytes)
      : buffer(__builtin_amdgcn_make_buffer_rsrc(const_cast<void*>(base), 0, static_cast<i32>(bytes), 0x00027000)) {}
  MXORT_METHOD i32x4 Slot(u32 offset) const {
    return __builtin_bit_cast(i32x4, __builtin_amdgcn_raw_buffer_load_b128(buffer, static_cast<i32>(offset), 0, 0));
  }
  MXORT_METHOD i32 Word(u32 offset) const {
    return static_cast<i32>(__builtin_amdgcn_raw_buffer_load_b32(buffer, static_cast<i32>(offset), 0, 0));
  }
};

// One step of weights in registers, kCount fragments of it.
template <class Mma, int kCount = kFragments>
struct WeightStep {
  static constexpr int kSlots = WeightSlots(Mma::kWeight);
  i32x4 slot[kCount * kSlots];
  i32 scales;

  // From fragment number `first` of the record at `record` on.
  MXORT_METHOD void Load(const Stream& w, u32 record, u32 first) {
    const u32 lane = Lane();
    Unroll<0, kCount * kSlots>([&](auto i) __attribute__((always_inline)) {
      slot[i.value] = w.Slot(record + kScaleRecordBytes + (first * kSlots + i.value) * kSlotBytes + lane * kLaneSlot);
    });
    scales = w.Word(record + lane * 4);
  }
};

template <class Mma>
MXORT_DEVICE void MultiplyStep(const WeightStep<Mma>& w, const Stream& a, u32 offset, f32x4 (&sum)[kFragments]) {
  constexpr Operand kOperand = Mma::kOperand;
  const u32 lane = Lane();
  const i32 scale = HasScales(kOperand) ? a.Word(offset + lane * 4) : 0;
  Unroll<0, Mma::kParts>([&](auto part) __attribute__((always_inline)) {
    typename Mma::Activation activation;
    Unroll<0, Mma::kUnitReads>([&](auto i) __attribute__((always_inline)) {
      const u32 at = offset + ScaleBytes(kOperand) + (part.value + i.value) * kSlotBytes + lane * kLaneSlot;
      Mma::template Insert<i.value>(activation, a.Slot(at));
    });
    Unroll<0, kFragments>([&](auto n) __attribute__((always_inline)) {
      constexpr int kSlots = WeightStep<Mma>::kSlots, kSlot = n.value * kSlots + part.value * kSlots / Mma::kParts;
      sum[n.value] =
          Mma::template Multiply<part.value, 0, n.value, 0>(w.slot[kSlot], w.scales, activation, scale, sum[n.value]);
    });
  });
}

// Stores Y[row, column .. column + 3], or the partial sums.
MXORT_DEVICE void StoreColumns(const GemmArgs& args, u32 row, u32 column, f32x4 total) {
  if (row >= args.m) return;
  const bool partial = args.splits > 1;
  void* y = partial ? args.partial + static_cast<u64>(GroupY()) * args.m * args.n : args.y;
  Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
    const u32 c = column + i.value;
    if (c < args.n) {
      const float x = partial ? total[i.value] : total[i.value] * args.column_scale[c] + args.bias[c];
      StoreOne(partial ? static_cast<int>(Type::kFloat) : args.type, y, static_cast<u64>(row) * args.n + c, x);
    }
  });
}

// Adds the sums of all waves and stores 16 x 64 outputs: thread t has row t / 16, columns 4 (t % 16) ...
MXORT_DEVICE void AddAndStore(const GemmArgs& args, u32 panel, const f32x4 (&sum)[kFragments]) {
  constexpr u32 kStride = kPanelRows + 4;  // rows begin in different banks
  static MXORT_LDS __attribute__((aligned(16))) float memory[kSkinnyWaves][kFragmentRows * kStride];
  const u32 lane = Lane();
  Unroll<0, kFragments>([&](auto n) __attribute__((always_inline)) {
    const u32 at = lane % 16 * kStride + lane / 16 * 16 + n.value * 4;
    *reinterpret_cast<f32x4*>(&memory[WaveIndex()][at]) = sum[n.value];
  });
  __builtin_amdgcn_s_waitcnt(0xC07F);  // lgkmcnt(0)
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
  const u32 row = Thread() / 16, local = Thread() % 16 * 4, column = panel * kPanelRows + local;
  f32x4 total = {0, 0, 0, 0};
  Unroll<0, kSkinnyWaves>([&](auto wave) __attribute__((always_inline)) {
    total += *reinterpret_cast<const f32x4*>(&memory[wave.value][row * kStride + local]);
  });
  StoreColumns(args, row, column, total);
}

// A panel of Y, over one split.
template <class Mma>
MXORT_DEVICE void SkinnyPanel(const GemmArgs& args, u32 panel, u32 split) {
  const u32 first = split * args.steps_per_split;
  const u32 end = args.steps - first < args.steps_per_split ? args.steps : first + args.steps_per_split;
  constexpr u32 kSteps = 4 / WeightSlots(Mma::kWeight);  // in flight in a wave
  constexpr u32 kRecordW = WeightRecordBytes(Mma::kWeight), kRecordA = RecordBytes(Mma::kOperand);
  const Stream w(static_cast<const u8*>(args.w) + static_cast<u64>(panel) * args.steps * kRecordW,
                 args.steps * kRecordW);
  const Stream a(args.a, args.steps * args.terms * kRecordA);
  f32x4 sum[kFragments];
  Unroll<0, kFragments>([&](auto n) __attribute__((always_inline)) { sum[n.value] = f32x4{0, 0, 0, 0}; });
  for (u32 step = first + WaveIndex(); step < end; step += kSkinnyWaves * kSteps) {
    WeightStep<Mma> weights[kSteps];
    Unroll<0, static_cast<int>(kSteps)>([&](auto i) __attribute__((always_inline)) {
      const u32 s = step + i.value * kSkinnyWaves;
      const u32 record = s < end ? s * kRecordW : kBehind;  // behind the end: nothing is fetched
      weights[i.value].Load(w, record, 0);
    });
    Unroll<0, static_cast<int>(kSteps)>([&](auto i) __attribute__((always_inline)) {
      const u32 s = step + i.value * kSkinnyWaves;
      if (s < end) {
        for (u32 term = 0; term < args.terms; ++term) {
          MultiplyStep<Mma>(weights[i.value], a, (s * args.terms + term) * kRecordA, sum);
        }
      }
    });
  }
  AddAndStore(args, panel, sum);
}

template <class Mma>
MXORT_DEVICE void Skinny(const GemmArgs& args) {
  SkinnyPanel<Mma>(args, GroupX(), GroupY());
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_SKINNY_H_
