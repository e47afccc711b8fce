// Arguments of the kernels over rows, host and device. No headers.
#ifndef MXORT_KERNELS_HIP_ARGS_ROWS_H_
#define MXORT_KERNELS_HIP_ARGS_ROWS_H_

namespace mxort::hip {

// Row r of a tensor [outer, n, inner] is r = outer * inner + i: element k lies at (r / inner * n + k) * inner + r %
// inner.
struct RowShape {
  unsigned long long rows;
  unsigned n, inner;
};

inline constexpr unsigned kRowThreads = 256;
inline constexpr unsigned kWaveRowMost = 512;  // rows up to this length get a wave, longer ones a workgroup

struct SoftmaxArgs {
  RowShape shape;
  const void* x;
  void* y;
  int type;
  int log;  // 1: LogSoftmax
};

// y = (v - mean) / sqrt(variance + epsilon) * scale + shift with v = x + skip + bias; without the mean where `rms`.
struct NormArgs {
  RowShape shape;  // inner is 1
  const void* x;
  const void* skip;   // [skip_rows, n]: row r takes r % skip_rows; null: none
  const void* bias;   // [n] or null
  const void* scale;  // [n] or null
  const void* shift;  // [n] or null
  void* y;
  void* sum;       // v in the type of x, or null
  float* mean;     // [rows] or null
  float* inverse;  // [rows] or null: 1 / sqrt(variance + epsilon)
  unsigned long long skip_rows;
  float epsilon;
  int type, scale_type;  // of x, skip, bias, sum; of scale, shift and y
  int out_type;
  int rms;
  int rounds;  // v is rounded to the type of x before it is normalised, as the sum is that a node of its own gives
};

enum class Reduction : int { kSum, kMean, kMax, kMin, kProd, kL1, kL2, kSumSquare, kLogSum, kLogSumExp };
struct ReduceRowsArgs {
  RowShape shape;
  const void* x;
  void* y;  // [rows]
  int type;
  int reduction;  // Reduction
};

// The k best of every row in order, ties by index: values [rows as x, k] and their indices. For ArgMax k is 1 and
// values null.
struct TopArgs {
  RowShape shape;
  const void* x;
  void* values;        // null: not wanted
  long long* indices;  // laid out as a tensor [outer, k, inner]
  unsigned k;
  int type;
  int smallest;  // 1: the least first
  int last;      // 1: of equals the last index first
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ARGS_ROWS_H_
