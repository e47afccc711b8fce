// Rows: softmax, normalisation, reductions, the best of a row. A row of up to kWaveRowMost elements belongs to a wave,
// four rows to a workgroup; a longer one to a workgroup. Rows are read from memory once a pass: a second pass finds
// them in cache.
#include "kernels/hip/args_rows.h"
#include "kernels/hip/copy.h"
#include "kernels/hip/math.h"
#include "kernels/hip/norm.h"
#include "kernels/hip/strided.h"  // i64
#include "kernels/hip/team.h"
#include "kernels/hip/wave.h"

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

struct Multiply {
  MXORT_METHOD float operator()(float x, float y) const { return x * y; }
};
// NaN passes through both.
struct Larger {
  MXORT_METHOD float operator()(float x, float y) const { return IsNaN(x) || x > y ? x : y; }
};
struct Smaller {
  MXORT_METHOD float operator()(float x, float y) const { return IsNaN(x) || x < y ? x : y; }
};

struct Row {
  u64 base;
  u32 n, inner;
  // There are less than 2^32 rows (device/rows.cc): a division of 64 bits would be a hundred instructions.
  MXORT_METHOD Row(const RowShape& shape, u64 row) : n(shape.n), inner(shape.inner) {
    const u32 outer = static_cast<u32>(row) / inner;
    base = u64{outer} * n * inner + (static_cast<u32>(row) - outer * inner);
  }
  MXORT_METHOD u64 At(u32 k) const { return base + static_cast<u64>(k) * inner; }
};

template <bool kMany>
MXORT_DEVICE void Softmax(const SoftmaxArgs& args, Team<kMany> team) {
  if (team.Row() >= args.shape.rows) return;
  const Row row(args.shape, team.Row());
  float most = -kInfinity, sum = 0;
  ForRow(team, row.n, [&](u32 k) { most = Larger()(most, LoadOne(args.type, args.x, row.At(k))); });
  most = team.template Reduce<0>(most, Larger());
  ForRow(team, row.n, [&](u32 k) { sum += Exp(LoadOne(args.type, args.x, row.At(k)) - most); });
  sum = team.template Reduce<1>(sum, Add());
  const float inverse = 1.0f / sum, log_sum = args.log ? Log(sum) : 0.0f;
  ForRow(team, row.n, [&](u32 k) {
    const float x = LoadOne(args.type, args.x, row.At(k)) - most;
    StoreOne(args.type, args.y, row.At(k), args.log ? x - log_sum : Exp(x) * inverse);
  });
}

template <bool kMany>
MXORT_DEVICE void Normalise(const NormArgs& args, Team<kMany> team) {
  const u64 row = team.Row();
  if (row >= args.shape.rows) return;
  const NormRow values(args, row);
  const Moments moments = MomentsOf(values, team);
  StoreNormalised(values, moments, team.First(), Team<kMany>::kThreads);
  if (team.First() != 0) return;
  if (args.mean) args.mean[row] = moments.mean;
  if (args.inverse) args.inverse[row] = moments.inverse;
}

template <bool kMany>
MXORT_DEVICE void ReduceRow(const ReduceRowsArgs& args, Team<kMany> team) {
  if (team.Row() >= args.shape.rows) return;
  const Row row(args.shape, team.Row());
  const auto load = [&](u32 k) __attribute__((always_inline)) { return LoadOne(args.type, args.x, row.At(k)); };
  const auto reduction = static_cast<Reduction>(args.reduction);
  float y = 0;
  if (reduction == Reduction::kMax || reduction == Reduction::kMin) {
    const float sign = reduction == Reduction::kMax ? 1.0f : -1.0f;
    y = -kInfinity;
    ForRow(team, row.n, [&](u32 k) { y = Larger()(y, sign * load(k)); });
    y = sign * team.template Reduce<0>(y, Larger());
  } else if (reduction == Reduction::kProd) {
    y = 1;
    ForRow(team, row.n, [&](u32 k) { y *= load(k); });
    y = team.template Reduce<1>(y, Multiply());
  } else {
    float most = 0;
    if (reduction == Reduction::kLogSumExp) {
      most = -kInfinity;
      ForRow(team, row.n, [&](u32 k) { most = Larger()(most, load(k)); });
      most = team.template Reduce<2>(most, Larger());
      most = AbsOf(most) == kInfinity ? 0.0f : most;
    }
    ForRow(team, row.n, [&](u32 k) {
      const float x = load(k);
      switch (reduction) {
        case Reduction::kL1:
          y += AbsOf(x);
          break;
        case Reduction::kL2:
        case Reduction::kSumSquare:
          y = Fma(x, x, y);
          break;
        case Reduction::kLogSumExp:
          y += Exp(x - most);
          break;
        case Reduction::kSum:
        case Reduction::kMean:
        case Reduction::kLogSum:
          y += x;
          break;
        default:
          __builtin_unreachable();  // they have loops of their own
      }
    });
    y = team.template Reduce<3>(y, Add());
    if (reduction == Reduction::kMean) y /= static_cast<float>(row.n);
    if (reduction == Reduction::kL2) y = __builtin_sqrtf(y);
    if (reduction == Reduction::kLogSum || reduction == Reduction::kLogSumExp) y = Log(y) + most;
  }
  if (team.First() == 0) StoreOne(args.type, args.y, team.Row(), y);
}

// Of int64 and int32. One lane a row: they are masks and lengths.
MXORT_DEVICE void ReduceWhole(const ReduceRowsArgs& args) {
  const u64 index = u64{GroupX()} * kRowThreads + Thread();
  if (index >= args.shape.rows) return;
  const Row row(args.shape, index);
  const auto reduction = static_cast<Reduction>(args.reduction);
  const bool wide = static_cast<Type>(args.type) == Type::kInt64;
  i64 y = reduction == Reduction::kProd ? 1 : 0;
#pragma clang loop unroll(disable)
  for (u32 k = 0; k < row.n; ++k) {
    const u64 at = row.At(k);
    const i64 x = wide ? static_cast<const i64*>(args.x)[at] : static_cast<const i32*>(args.x)[at];
    switch (reduction) {
      case Reduction::kProd:
        y *= x;
        break;
      case Reduction::kMax:
        y = k == 0 || x > y ? x : y;
        break;
      case Reduction::kMin:
        y = k == 0 || x < y ? x : y;
        break;
      case Reduction::kL1:
        y += x < 0 ? -x : x;
        break;
      case Reduction::kSumSquare:
        y += x * x;
        break;
      case Reduction::kSum:
      case Reduction::kMean:
        y += x;
        break;
      default:
        __builtin_unreachable();  // the provider leaves them to the CPU
    }
  }
  if (reduction == Reduction::kMean) y /= static_cast<i64>(row.n);
  if (wide) {
    static_cast<i64*>(args.y)[index] = y;
  } else {
    static_cast<i32*>(args.y)[index] = static_cast<i32>(y);
  }
}

// A value and its index; `none` comes behind everything.
struct Entry {
  float value;
  u32 index;
};
inline constexpr u32 kNone = 0xFFFFFFFF;

// Whether x comes before y: NaN is the largest number, as in NumPy.
MXORT_DEVICE bool Before(const TopArgs& args, Entry x, Entry y) {
  if (x.index == kNone || y.index == kNone) return x.index != kNone;
  const bool x_nan = IsNaN(x.value), y_nan = IsNaN(y.value);
  const bool equal = (x_nan && y_nan) || x.value == y.value;
  if (equal) return args.last ? x.index > y.index : x.index < y.index;
  const bool larger = x_nan || (!y_nan && x.value > y.value);
  return larger != (args.smallest != 0);
}

// One wave a row. Place after place: the first of those that come behind the one found before.
MXORT_DEVICE void Top(const TopArgs& args) {
  const u64 index = u64{GroupX()} * kRowWaves + WaveIndex();
  if (index >= args.shape.rows) return;
  const Row row(args.shape, index);
  const u64 out = Row({args.shape.rows, args.k, row.inner}, index).base;
  Entry found{0, kNone};
#pragma clang loop unroll(disable)
  for (u32 place = 0; place < args.k; ++place) {
    Entry best{0, kNone};
#pragma clang loop unroll(disable)
    for (u32 k = Lane(); k < row.n; k += kWave) {
      const Entry x{LoadOne(args.type, args.x, row.At(k)), k};
      if ((place == 0 || Before(args, found, x)) && Before(args, x, best)) best = x;
    }
    Unroll<0, 6>([&](auto i) __attribute__((always_inline)) {
      const u32 lane = Lane() ^ (1u << i.value);
      const Entry other{FromLane(best.value, lane), FromLane(best.index, lane)};
      if (Before(args, other, best)) best = other;
    });
    found = best;
    if (Lane() == 0) {
      const u64 at = out + static_cast<u64>(place) * row.inner;
      if (args.values) StoreOne(args.type, args.values, at, found.value);
      args.indices[at] = found.index;
    }
  }
}

#define MXORT_ROWS(name, Args, Function)                                                \
  MXORT_KERNEL(256, 4) name##_wave(Args args) { Function(args, Team<false>{nullptr}); } \
  MXORT_KERNEL(256, 4) name##_group(Args args) {                                        \
    static MXORT_LDS float slots[kReductions * kRowWaves];                              \
    Function(args, Team<true>{(LdsFloats)slots});                                       \
  }
MXORT_ROWS(softmax, SoftmaxArgs, Softmax)
MXORT_ROWS(norm, NormArgs, Normalise)
MXORT_ROWS(reduce_rows, ReduceRowsArgs, ReduceRow)
MXORT_KERNEL(256, 4) reduce_whole(ReduceRowsArgs args) { ReduceWhole(args); }
MXORT_KERNEL(256, 4) top(TopArgs args) { Top(args); }
#endif
