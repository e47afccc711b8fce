// Matrix instructions of attention, as policies: two operands of 16 rows x 32, of which lane l holds the 8 numbers
// 8 (l / 16) .. + 7 of row l % 16; the product's 16 x 16 as the instruction leaves them: lane l has rows 4 (l / 16) + i
// of column l % 16. The order of the 32 is free as long as it is that of both operands.
//
// Left is what comes from memory (keys, values), Right what stays or is computed (queries, weights of the softmax).
// A float is multiplied as a float: v_mfma_f32_16x16x4_f32 has 1/16 of bf16's rate, three products of bf16 halves would
// have 1/3 of it, but need twice the registers and LDS and err by 2^-16; who wants speed has half types or a quantised
// cache, whose numbers are exact in bf16 and meet the float operand as its three bf16 terms.
#ifndef MXORT_KERNELS_HIP_ATTENTION_MMA_H_
#define MXORT_KERNELS_HIP_ATTENTION_MMA_H_

#include "kernels/hip/element.h"
#include "kernels/hip/prelude.h"

namespace mxort::hip {

inline constexpr int kPerLane = 8;

typedef float f32x8 __attribute__((ext_vector_type(8)));
typedef __bf16 bf16x8 __attribute__((ext_vector_type(8)));
typedef _Float16 f16x8 __attribute__((ext_vector_type(8)));

MXORT_DEVICE f32x4 MultiplyBFloat16(i32x4 left, i32x4 right, f32x4 sum) {
#if defined(__gfx950__)
  return __builtin_amdgcn_mfma_f32_16x16x32_bf16(__builtin_bit_cast(bf16x8, left), __builtin_bit_cast(bf16x8, right),
                                                 sum, 0, 0, 0);
#else
  typedef short i16x4 __attribute__((ext_vector_type(4)));
  Unroll<0, 2>([&](auto i) __attribute__((always_inline)) {
    constexpr int k = 2 * i.value;
    sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(i16x4, i32x2{left[k], left[k + 1]}),
                                                    __builtin_bit_cast(i16x4, i32x2{right[k], right[k + 1]}), sum, 0, 0,
                                                    0);
  });
  return sum;
#endif
}
MXORT_DEVICE f32x4 MultiplyFloat16(i32x4 left, i32x4 right, f32x4 sum) {
#if defined(__gfx950__)
  return __builtin_amdgcn_mfma_f32_16x16x32_f16(__builtin_bit_cast(f16x8, left), __builtin_bit_cast(f16x8, right), sum,
                                                0, 0, 0);
#else
  typedef _Float16 f16x4 __attribute__((ext_vector_type(4)));
  Unroll<0, 2>([&](auto i) __attribute__((always_inline)) {
    constexpr int k = 2 * i.value;
    sum = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(f16x4, i32x2{left[k], left[k + 1]}),
                                                __builtin_bit_cast(f16x4, i32x2{right[k], right[k + 1]}), sum, 0, 0, 0);
  });
  return sum;
#endif
}

// Operands and their products for elements of a type.
template <Type kElement>
struct ElementMma {
  static constexpr Type kType = kElement;
  using Left = i32x4;  // 8 half-precision numbers
  using Right = i32x4;
  MXORT_DEVICE Right MakeRight(const f32x8& x) {
    if constexpr (kType == Type::kBFloat16) {
      return __builtin_bit_cast(Right, __builtin_convertvector(x, bf16x8));
    } else {
      return __builtin_bit_cast(Right, __builtin_convertvector(x, f16x8));
    }
  }
  MXORT_DEVICE f32x4 Multiply(const Left& left, const Right& right, f32x4 sum) {
    return kType == Type::kFloat16 ? MultiplyFloat16(left, right, sum) : MultiplyBFloat16(left, right, sum);
  }
};
template <>
struct ElementMma<Type::kFloat> {
  static constexpr Type kType = Type::kFloat;
  using Left = f32x8;
  using Right = f32x8;
  MXORT_DEVICE Right MakeRight(const f32x8& x) { return x; }
  MXORT_DEVICE f32x4 Multiply(const Left& left, const Right& right, f32x4 sum) {
    Unroll<0, kPerLane>([&](auto i) __attribute__((always_inline)) {
      sum = __builtin_amdgcn_mfma_f32_16x16x4f32(left[i.value], right[i.value], sum, 0, 0, 0);
    });
    return sum;
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_MMA_H_
