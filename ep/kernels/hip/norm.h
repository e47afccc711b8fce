// What a normalisation needs of a row before any element of it is known: mean and inverse deviation.
#ifndef MXORT_KERNELS_HIP_NORM_H_
#define MXORT_KERNELS_HIP_NORM_H_

#include "kernels/hip/args_rows.h"
#include "kernels/hip/element.h"
#include "kernels/hip/math.h"
#include "kernels/hip/team.h"

namespace mxort::hip {

// v = x + skip + bias of a row.
struct NormRow {
  const NormArgs& args;
  u64 base, skip;  // of the row's first element
  MXORT_METHOD NormRow(const NormArgs& args, u64 row)
      : args(args),
        base(row * args.shape.n),
        skip(args.skip ? u64{static_cast<u32>(row) % static_cast<u32>(args.skip_rows)} * args.shape.n : 0) {}
  MXORT_METHOD float At(u32 k) const {
    float v = LoadOne(args.type, args.x, base + k);
    if (args.skip) v += LoadOne(args.type, args.skip, skip + k);
    if (args.bias) v += LoadOne(args.type, args.bias, k);
    return args.rounds ? Rounded(args.type, v) : v;
  }
};

struct Moments {
  float mean, inverse;
};

template <bool kMany>
MXORT_DEVICE Moments MomentsOf(const NormRow& row, const Team<kMany>& team) {
  const u32 n = row.args.shape.n;
  const float over_n = 1.0f / static_cast<float>(n);
  float mean = 0, squares = 0;
  if (!row.args.rms) {
    ForRow(team, n, [&](u32 k) { mean += row.At(k); });
    mean = team.template Reduce<0>(mean, Add()) * over_n;
  }
  ForRow(team, n, [&](u32 k) {
    const float d = row.At(k) - mean;
    squares = Fma(d, d, squares);
  });
  const float variance = team.template Reduce<1>(squares, Add()) * over_n;
  return {mean, 1.0f / __builtin_sqrtf(variance + row.args.epsilon)};
}

// Writes the row, v and y: elements `first`, first + stride, ...
MXORT_DEVICE void StoreNormalised(const NormRow& row, const Moments& moments, u32 first, u32 stride) {
  const NormArgs& args = row.args;
#pragma clang loop unroll(disable)
  for (u32 k = first; k < args.shape.n; k += stride) {
    const float v = row.At(k);
    float y = (v - moments.mean) * moments.inverse;
    if (args.scale) y *= LoadOne(args.scale_type, args.scale, k);
    if (args.shift) y += LoadOne(args.scale_type, args.shift, k);
    if (args.sum) StoreOne(args.type, args.sum, row.base + k, v);
    if (args.y) StoreOne(args.out_type, args.y, row.base + k, y);
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_NORM_H_
