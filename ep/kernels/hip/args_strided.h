// Arguments of the kernels that visit every element of a tensor once, host and device. No headers but args.h.
#ifndef MXORT_KERNELS_HIP_ARGS_STRIDED_H_
#define MXORT_KERNELS_HIP_ARGS_STRIDED_H_

#include "kernels/hip/args.h"

namespace mxort::hip {

inline constexpr int kMostDims = 8;

// Elements in row-major order of `dims`; those of operand o lie at sum(index[d] * strides[o][d]). A stride of zero
// repeats an element.
template <int kOperands>
struct Strides {
  unsigned rank;
  unsigned dims[kMostDims];
  long long strides[kOperands][kMostDims];
};

inline constexpr unsigned kStridedThreads = 256;
inline constexpr unsigned kStridedElements = 1024;  // of a workgroup

// What pointwise.hip can compute: out = f(x, y, z), with the parameters a and b. Comparisons and logic give 0 or 1.
enum class Function : int {
  kIdentity,
  kNeg,
  kAbs,
  kSign,
  kNot,
  // Of floats only.
  kSqrt,
  kReciprocal,
  kExp,
  kLog,
  kErf,
  kTanh,
  kSigmoid,
  kSoftplus,
  kSin,
  kCos,
  kFloor,
  kCeil,
  kRound,
  kIsNaN,
  kIsInf,  // a: -inf counts, b: +inf counts
  kLeakyRelu,
  kElu,  // a: alpha
  kHardSigmoid,
  kHardSwish,  // a: alpha, b: beta
  kSwish,      // x * sigmoid(a * x)
  kGelu,
  kGeluTanh,  // of x + y where there is a y
  kMish,
  kPow,
  // Of any number.
  kRelu,
  kAdd,
  kSub,
  kMul,
  kDiv,
  kMin,
  kMax,
  kClip,  // Clip: x, least y, most z
  kEqual,
  kLess,
  kLessOrEqual,
  kGreater,
  kGreaterOrEqual,
  kAnd,
  kOr,
  kXor,
  kWhere,  // x ? y : z
  kPRelu,  // x < 0 ? x * y : x
};

struct PointwiseArgs {
  Strides<4> shape;   // operands: x, y, z, out
  const void* in[3];  // null: absent
  void* out;
  unsigned long long count;
  int in_types[3];  // Type
  int out_type;
  int function;  // Function
  float a, b;
};

// out[...] = in[...]; the kernel's name says how many bytes an element has.
struct CopyArgs {
  Strides<2> shape;  // operands: in, out
  const void* in;
  void* out;
  unsigned long long count;
};

// out[...] = data[... + sum over q of indices[... + q] * strides[q]].
struct GatherArgs {
  Strides<3> shape;  // operands: data, indices, out
  const void* data;
  const void* indices;
  void* out;
  unsigned long long count;
  unsigned axes;               // of data that are indexed; their indices are next to each other
  int index_type;              // kInt32, kInt64
  long long sizes[kMostDims];  // of those axes
  long long strides[kMostDims];
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ARGS_STRIDED_H_
