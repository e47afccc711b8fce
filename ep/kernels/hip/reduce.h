// Adds the partial sums of split-K and finishes as the GEMM would have. Grid x: 256 columns, grid y: rows.
#ifndef MXORT_KERNELS_HIP_REDUCE_H_
#define MXORT_KERNELS_HIP_REDUCE_H_

#include "kernels/hip/args.h"
#include "kernels/hip/epilogue.h"

namespace mxort::hip {

MXORT_DEVICE void Reduce(const ReduceArgs& args) {
  const u32 column = GroupX() * 256 + Thread();
  if (column >= args.n) return;
  const u64 size = static_cast<u64>(args.m) * args.n;
  const float scale = args.column_scale[column], bias = args.bias[column];
  for (u32 row = GroupY(); row < args.m; row += args.grid_rows) {
    const u64 index = static_cast<u64>(row) * args.n + column;
    float total = 0;
    for (u32 split = 0; split < args.splits; ++split) total += args.partial[split * size + index];  // a fixed order
    StoreOne(args.type, args.y, index, total * scale + bias);
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_REDUCE_H_
