// Single elements of tensors: from memory to float and back, by the tensor's type.
#ifndef MXORT_KERNELS_HIP_ELEMENT_H_
#define MXORT_KERNELS_HIP_ELEMENT_H_

#include "kernels/hip/args.h"
#include "kernels/hip/prelude.h"

namespace mxort::hip {

MXORT_DEVICE u16 ToFloat16(float x) { return __builtin_bit_cast(u16, static_cast<_Float16>(x)); }
MXORT_DEVICE u16 ToBFloat16(float x) { return __builtin_bit_cast(u16, static_cast<__bf16>(x)); }
MXORT_DEVICE u16 ToHalf(Type type, float x) { return type == Type::kFloat16 ? ToFloat16(x) : ToBFloat16(x); }
MXORT_DEVICE float FromFloat16(u16 x) { return static_cast<float>(__builtin_bit_cast(_Float16, x)); }
MXORT_DEVICE float FromBFloat16(u16 x) { return __builtin_bit_cast(float, u32{x} << 16); }

template <Type kType>
MXORT_DEVICE void StoreOne(void* y, u64 index, float x) {
  if constexpr (kType == Type::kFloat) {
    static_cast<float*>(y)[index] = x;
  } else {
    static_cast<u16*>(y)[index] = ToHalf(kType, x);
  }
}
MXORT_DEVICE void StoreOne(int type, void* y, u64 index, float x) {
  if (type == static_cast<int>(Type::kFloat)) return StoreOne<Type::kFloat>(y, index, x);
  if (type == static_cast<int>(Type::kFloat16)) return StoreOne<Type::kFloat16>(y, index, x);
  StoreOne<Type::kBFloat16>(y, index, x);
}

template <Type kType>
MXORT_DEVICE float LoadOne(const void* x, u64 index) {
  if constexpr (kType == Type::kFloat) {
    return static_cast<const float*>(x)[index];
  } else {
    const u16 half = static_cast<const u16*>(x)[index];
    return kType == Type::kFloat16 ? FromFloat16(half) : FromBFloat16(half);
  }
}
// Of the three float types.
MXORT_DEVICE float LoadOne(int type, const void* x, u64 index) {
  if (type == static_cast<int>(Type::kFloat)) return LoadOne<Type::kFloat>(x, index);
  if (type == static_cast<int>(Type::kFloat16)) return LoadOne<Type::kFloat16>(x, index);
  return LoadOne<Type::kBFloat16>(x, index);
}

// What is left of x in a tensor of that type.
MXORT_DEVICE float Rounded(int type, float x) {
  if (type == static_cast<int>(Type::kFloat)) return x;
  if (type == static_cast<int>(Type::kFloat16)) return FromFloat16(ToFloat16(x));
  return FromBFloat16(ToBFloat16(x));
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ELEMENT_H_
