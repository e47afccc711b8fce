// Arguments of the kernels that copy every element of a tensor once, host and device. No headers but args.h.
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
