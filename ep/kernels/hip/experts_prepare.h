// Records of what the two products of a mixture of experts read: rows of X, by row or by slot, and the activations
// between the products. The sinks are those of prepare.h.
#ifndef MXORT_KERNELS_HIP_EXPERTS_PREPARE_H_
#define MXORT_KERNELS_HIP_EXPERTS_PREPARE_H_

#include "kernels/hip/activate.h"
#include "kernels/hip/args_experts.h"
#include "kernels/hip/experts_route.h"
#include "kernels/hip/prepare.h"

namespace mxort::hip {

// Rows of whole blocks: what else there is of loads the compiler may leave out.
MXORT_DEVICE PrepareArgs OfWholeBlocks(const PrepareArgs& args) {
  PrepareArgs own = args;
  own.k &= ~static_cast<u32>(kBlockSize - 1);
  return own;
}

// Few rows: X as it is, one panel; beside it one workgroup routes.
template <class Sink>
MXORT_DEVICE void RoutePrepare(const RoutePrepareArgs& args) {
  if (GroupX() == args.prepare.steps) return RouteFew(args.router, args.slots);
  Prepare<Sink>(OfWholeBlocks(args.prepare));
}

// The 16 slots that a wave prepares, and where their fragment goes. Of few rows a tile has a panel of its own, of which
// there is nothing but the first fragment, so that a kernel finds every tile's rows in the same bytes of a record.
struct SlotFragment {
  u32 panel, fragment, slot;
  bool used;
  MXORT_METHOD SlotFragment(const Slots& slots, bool few) {
    panel = few ? GroupY() * 4 + WaveIndex() : GroupY();
    fragment = few ? 0 : WaveIndex();
    const u32 rows = few ? kFewRows : kPanelRows, tile = panel * rows / slots.height;
    used = tile < *slots.count && panel * rows < slots.tiles[tile].end;
    slot = panel * rows + fragment * kFragmentRows + Lane() % 16;
  }
};

template <class Sink>
MXORT_DEVICE void GatherPrepare(const GatherArgs& args) {
  const SlotFragment place(args.slots, false);
  if (!place.used) return;
  const int row = args.slots.row[place.slot];
  float x[kBlockSize];
  LoadRotated(OfWholeBlocks(args.prepare), static_cast<u64>(row), row >= 0, x);
  Sink::Store({static_cast<u8*>(args.prepare.records), place.panel, GroupX(), args.prepare.steps, args.prepare.terms,
               place.fragment},
              x);
}

// SiLU by the hardware's own exponential and reciprocal (1 unit of the last place each), in five instructions where
// Followed has forty. The exponent's argument is rounded, which moves x sigmoid(alpha x) by 2^-23 |alpha x| s (1 - s)
// |x|, at most 3e-8 |x|. Where exp2 overflows the quotient is 0.
MXORT_DEVICE float FastSilu(float x, float alpha) {
  return x * __builtin_amdgcn_rcpf(1.0f + __builtin_amdgcn_exp2f(x * alpha * -kLog2E));
}

// x = f(x), the function chosen once.
MXORT_DEVICE void FollowAll(Follow activation, float alpha, float (&x)[kBlockSize]) {
  const auto all = [&](auto follow) __attribute__((always_inline)) {
    constexpr auto kFollow = static_cast<Follow>(follow.value);
    Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
      float& y = x[i.value];
      y = kFollow == Follow::kSilu ? FastSilu(y, alpha) : Followed(kFollow, y);
    });
  };
  switch (activation) {
    case Follow::kNone:
      return;
    case Follow::kRelu:
      return all(Constant<static_cast<int>(Follow::kRelu)>{});
    case Follow::kGelu:
      return all(Constant<static_cast<int>(Follow::kGelu)>{});
    case Follow::kGeluTanh:
      return all(Constant<static_cast<int>(Follow::kGeluTanh)>{});
    case Follow::kSilu:
      return all(Constant<static_cast<int>(Follow::kSilu)>{});
  }
}

// NaN stays NaN.
MXORT_DEVICE float AtMost(float x, float limit) { return x > limit ? limit : x; }

template <class Sink>
MXORT_DEVICE void InnerPrepare(const InnerArgs& args) {
  const SlotFragment place(args.slots, args.slots.height == kFewRows);
  if (!place.used) return;
  const u32 k = GroupX() * kStepK + Lane() / 16 * kBlockSize;
  const bool there = args.slots.row[place.slot] >= 0 && k < args.inner;  // a multiple of 32
  const auto gates = static_cast<Gates>(args.gates);
  float x[kBlockSize], up[kBlockSize];
  Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) { x[i.value] = 0, up[i.value] = 0; });
  if (there) {
    const u64 width = gates == Gates::kNone ? args.inner : 2 * args.inner;
    const float* p = args.p + place.slot * width;
    const auto load = [&](u32 column)
                          __attribute__((always_inline)) { return *reinterpret_cast<const f32x4*>(p + column); };
    if (gates == Gates::kInterleaved) {
      Unroll<0, kBlockSize / 2>([&](auto i) __attribute__((always_inline)) {
        const f32x4 v = load(2 * k + 4 * i.value);
        x[2 * i.value] = v[0], up[2 * i.value] = v[1], x[2 * i.value + 1] = v[2], up[2 * i.value + 1] = v[3];
      });
    } else {
      Unroll<0, kBlockSize / 4>([&](auto i) __attribute__((always_inline)) {
        const f32x4 v = load(k + 4 * i.value);
        Unroll<0, 4>([&](auto j) __attribute__((always_inline)) { x[4 * i.value + j.value] = v[j.value]; });
      });
      if (gates == Gates::kHalves) {
        Unroll<0, kBlockSize / 4>([&](auto i) __attribute__((always_inline)) {
          const f32x4 v = load(args.inner + k + 4 * i.value);
          Unroll<0, 4>([&](auto j) __attribute__((always_inline)) { up[4 * i.value + j.value] = v[j.value]; });
        });
      }
    }
  }
  if (gates != Gates::kNone) {
    Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) {
      x[i.value] = AtMost(x[i.value], args.limit);
      up[i.value] = -AtMost(-AtMost(up[i.value], args.limit), args.limit) + args.beta;
    });
  }
  FollowAll(static_cast<Follow>(args.activation), args.alpha, x);
  if (gates != Gates::kNone) {
    Unroll<0, kBlockSize>([&](auto i) __attribute__((always_inline)) { x[i.value] *= up[i.value]; });
  }
  Rotate<16>(args.rotation, x);
  Sink::Store({static_cast<u8*>(args.records), place.panel, GroupX(), args.steps, args.terms, place.fragment}, x);
}

// Y of many rows, in the order of the experts.
MXORT_DEVICE void Combine(const CombineArgs& args) {
  constexpr u32 kColumns = 4;
  const u32 column = (GroupX() * kExpertsThreads + Thread()) * kColumns;
  if (column >= args.n) return;  // a multiple of 32
  for (u32 row = GroupY(); row < args.rows; row += args.grid_rows) {
    f32x4 sum = {0, 0, 0, 0};
    for (u32 i = 0; i < args.chosen; ++i) {
      const u64 pair = static_cast<u64>(row) * args.chosen + i;
      const int slot = args.slot[pair];
      if (slot < 0) {
        const float nan = __builtin_nanf("");
        sum = f32x4{nan, nan, nan, nan};
        break;
      }
      sum += args.weight[pair] * *reinterpret_cast<const f32x4*>(args.y + static_cast<u64>(slot) * args.n + column);
    }
    Unroll<0, static_cast<int>(kColumns)>([&](auto i) __attribute__((always_inline)) {
      StoreOne(args.type, args.out, static_cast<u64>(row) * args.n + column + i.value, sum[i.value]);
    });
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_EXPERTS_PREPARE_H_
