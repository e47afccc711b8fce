// Arguments of the gathers of quantised rows (gather_mx.hip). No headers.
#ifndef MXORT_KERNELS_HIP_ARGS_GATHER_H_
#define MXORT_KERNELS_HIP_ARGS_GATHER_H_

namespace mxort::hip {

// y[i] = row indices[i] of a quantised table, decoded. Grid x: 1024 columns, grid y: rows of y.
struct GatherMxArgs {
  const void* indices;          // int64 or int32 [count]; negative ones count from the end
  const unsigned char* codes;   // [rows, ceil(k / 32) * bytes of a block]
  const unsigned char* scales;  // [rows, ceil(k / 32)]
  const void* multiplier;       // T [rows]
  void* y;                      // T [count, k]; the row of an index that does not exist is NaN
  unsigned long long count;
  long long rows;
  unsigned k;
  unsigned grid_rows;  // grid y
  int wide;            // indices are int64
  int type;            // Type of T: float, float16, bfloat16
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ARGS_GATHER_H_
