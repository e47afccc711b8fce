// Arguments of the kernel that computes functions of the elements at one place of several tensors, host and device. No
// headers but args.h.
#ifndef MXORT_KERNELS_HIP_ARGS_POINTWISE_H_
#define MXORT_KERNELS_HIP_ARGS_POINTWISE_H_

#include "kernels/hip/args_strided.h"

namespace mxort::hip {

inline constexpr unsigned kPointwiseThreads = 256;

// Of one launch. Registers hold results that later steps read.
inline constexpr int kMostPointwiseInputs = 8, kMostPointwiseSteps = 16, kPointwiseRegisters = 4;

// What a step computes: f(x, y, z), with the parameters a and b. Comparisons and logic give 0 or 1.
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

// Where a step's operand is: the number of an input, or kPointwiseRegister and that of a register.
inline constexpr int kPointwiseAbsent = -1, kPointwiseRegister = kMostPointwiseInputs;

struct PointwiseStep {
  int function;  // Function
  int whole;     // 1: operands and result are whole numbers or bools, and computed as such; else as floats
  int from[3];
  int types[3];  // Type, of the operands
  int to;        // a register; of the last step nothing, which is stored
  int type;      // of the result, which is rounded to it
  float a, b;
};

// The element of a tensor for an index into the output.
struct PointwiseInput {
  Strides<1> shape;
  const void* data;
};

struct PointwiseArgs {
  PointwiseInput in[kMostPointwiseInputs];
  PointwiseStep step[kMostPointwiseSteps];
  void* out;  // contiguous
  unsigned long long count;
  unsigned threads;  // of all workgroups
  int steps;
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ARGS_POINTWISE_H_
