// Where an element's operands lie (args_strided.h).
#ifndef MXORT_KERNELS_HIP_STRIDED_H_
#define MXORT_KERNELS_HIP_STRIDED_H_

#include "kernels/hip/args_strided.h"
#include "kernels/hip/prelude.h"

namespace mxort::hip {

using i64 = long long;

template <int kOperands>
struct Offsets {
  i64 at[kOperands];
};

// `index`: of the element in row-major order of the dimensions, of which the host merged all it could: one for most.
template <int kOperands>
MXORT_DEVICE Offsets<kOperands> OffsetsOf(const Strides<kOperands>& shape, u32 index) {
  Offsets<kOperands> offsets{};
#pragma clang loop unroll(disable)
  for (u32 d = shape.rank; d-- > 1;) {
    const u32 outer = index / shape.dims[d], inner = index - outer * shape.dims[d];
    Unroll<0, kOperands>([&](auto o) __attribute__((always_inline)) {
      offsets.at[o.value] += static_cast<i64>(inner) * shape.strides[o.value][d];
    });
    index = outer;
  }
  Unroll<0, kOperands>([&](auto o) __attribute__((always_inline)) {
    offsets.at[o.value] += static_cast<i64>(index) * shape.strides[o.value][0];
  });
  return offsets;
}

// body(index) for the elements of this workgroup.
template <class Body>
MXORT_DEVICE void ForElements(u64 count, const Body& body) {
#pragma clang loop unroll(disable)
  for (u32 i = Thread(); i < kStridedElements; i += kStridedThreads) {
    const u64 index = static_cast<u64>(GroupX()) * kStridedElements + i;
    if (index < count) body(static_cast<u32>(index));
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_STRIDED_H_
