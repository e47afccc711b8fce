// Where an element's operands lie (args_strided.h), and elements of any type.
#ifndef MXORT_KERNELS_HIP_STRIDED_H_
#define MXORT_KERNELS_HIP_STRIDED_H_

#include "kernels/hip/args_strided.h"
#include "kernels/hip/element.h"
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

// An element of any Type, as float or as i64.
template <class Number>
MXORT_DEVICE Number LoadNumber(int type, const void* x, i64 i) {
  switch (static_cast<Type>(type)) {
    case Type::kFloat:
      return static_cast<Number>(static_cast<const float*>(x)[i]);
    case Type::kFloat16:
      return static_cast<Number>(FromFloat16(static_cast<const u16*>(x)[i]));
    case Type::kBFloat16:
      return static_cast<Number>(FromBFloat16(static_cast<const u16*>(x)[i]));
    case Type::kInt64:
      return static_cast<Number>(static_cast<const i64*>(x)[i]);
    case Type::kInt32:
      return static_cast<Number>(static_cast<const i32*>(x)[i]);
    case Type::kInt8:
      return static_cast<Number>(static_cast<const signed char*>(x)[i]);
    default:
      return static_cast<Number>(static_cast<const u8*>(x)[i]);
  }
}

template <class Number>
MXORT_DEVICE void StoreNumber(int type, void* y, i64 i, Number value) {
  switch (static_cast<Type>(type)) {
    case Type::kFloat:
      static_cast<float*>(y)[i] = static_cast<float>(value);
      return;
    case Type::kFloat16:
      static_cast<u16*>(y)[i] = ToFloat16(static_cast<float>(value));
      return;
    case Type::kBFloat16:
      static_cast<u16*>(y)[i] = ToBFloat16(static_cast<float>(value));
      return;
    case Type::kInt64:
      static_cast<i64*>(y)[i] = static_cast<i64>(value);
      return;
    case Type::kInt32:
      static_cast<i32*>(y)[i] = static_cast<i32>(value);
      return;
    case Type::kInt8:
      static_cast<signed char*>(y)[i] = static_cast<signed char>(static_cast<i32>(value));
      return;
    case Type::kUint8:
      static_cast<u8*>(y)[i] = static_cast<u8>(static_cast<i32>(value));
      return;
    case Type::kBool:
      static_cast<u8*>(y)[i] = value != Number{0};
      return;
  }
  __builtin_unreachable();  // no other type
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_STRIDED_H_
