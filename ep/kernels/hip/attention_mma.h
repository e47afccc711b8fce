// Matrix instructions of attention, as policies, for tiles of R = 16 or 32 rows: two operands of R rows x 512 / R, of
// which lane l holds the 8 numbers 8 (l / R) .. + 7 of row l % R; the product's R x R as the instruction leaves them:
// lane l has rows 4 (l / R) + i % 4 + 256 / R (i / 4) of column l % R. The order of the 512 / R is free as long as it
// is that of both operands. A tile of 32 has twice the work of two of 16 with the same operands, for the issue of one.
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

typedef float f32x2 __attribute__((ext_vector_type(2)));
typedef float f32x8 __attribute__((ext_vector_type(8)));
typedef __bf16 bf16x8 __attribute__((ext_vector_type(8)));
typedef _Float16 f16x8 __attribute__((ext_vector_type(8)));
typedef float f32x16 __attribute__((ext_vector_type(16)));

#if defined(__gfx950__)
MXORT_DEVICE f32x4 MultiplyHalf(bf16x8 left, bf16x8 right, f32x4 sum) {
  return __builtin_amdgcn_mfma_f32_16x16x32_bf16(left, right, sum, 0, 0, 0);
}
MXORT_DEVICE f32x16 MultiplyHalf(bf16x8 left, bf16x8 right, f32x16 sum) {
  return __builtin_amdgcn_mfma_f32_32x32x16_bf16(left, right, sum, 0, 0, 0);
}
MXORT_DEVICE f32x4 MultiplyHalf(f16x8 left, f16x8 right, f32x4 sum) {
  return __builtin_amdgcn_mfma_f32_16x16x32_f16(left, right, sum, 0, 0, 0);
}
MXORT_DEVICE f32x16 MultiplyHalf(f16x8 left, f16x8 right, f32x16 sum) {
  return __builtin_amdgcn_mfma_f32_32x32x16_f16(left, right, sum, 0, 0, 0);
}
#else
typedef short i16x4 __attribute__((ext_vector_type(4)));
typedef _Float16 f16x4 __attribute__((ext_vector_type(4)));
MXORT_DEVICE f32x4 MultiplyQuarter(i16x4 left, i16x4 right, f32x4 sum) {
  return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(left, right, sum, 0, 0, 0);
}
MXORT_DEVICE f32x16 MultiplyQuarter(i16x4 left, i16x4 right, f32x16 sum) {
  return __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(left, right, sum, 0, 0, 0);
}
MXORT_DEVICE f32x4 MultiplyQuarter(f16x4 left, f16x4 right, f32x4 sum) {
  return __builtin_amdgcn_mfma_f32_16x16x16f16(left, right, sum, 0, 0, 0);
}
MXORT_DEVICE f32x16 MultiplyQuarter(f16x4 left, f16x4 right, f32x16 sum) {
  return __builtin_amdgcn_mfma_f32_32x32x8f16(left, right, sum, 0, 0, 0);
}
// An instruction multiplies four numbers of a lane: two make one of gfx950's.
template <class Number, class Sum>
MXORT_DEVICE Sum MultiplyHalf(Number left, Number right, Sum sum) {
  const i32x4 a = __builtin_bit_cast(i32x4, left), b = __builtin_bit_cast(i32x4, right);
  Unroll<0, 2>([&](auto i) __attribute__((always_inline)) {
    constexpr int k = 2 * i.value;
    if constexpr (__is_same(Number, bf16x8)) {
      sum = MultiplyQuarter(__builtin_bit_cast(i16x4, i32x2{a[k], a[k + 1]}),
                            __builtin_bit_cast(i16x4, i32x2{b[k], b[k + 1]}), sum);
    } else {
      sum = MultiplyQuarter(__builtin_bit_cast(f16x4, i32x2{a[k], a[k + 1]}),
                            __builtin_bit_cast(f16x4, i32x2{b[k], b[k + 1]}), sum);
    }
  });
  return sum;
}
#endif
MXORT_DEVICE f32x4 MultiplyFloat(float left, float right, f32x4 sum) {
  return __builtin_amdgcn_mfma_f32_16x16x4f32(left, right, sum, 0, 0, 0);
}
MXORT_DEVICE f32x16 MultiplyFloat(float left, float right, f32x16 sum) {
  return __builtin_amdgcn_mfma_f32_32x32x2f32(left, right, sum, 0, 0, 0);
}

template <Type kElement>
struct NumbersOf {
  using Type = f16x8;
};
template <>
struct NumbersOf<Type::kBFloat16> {
  using Type = bf16x8;
};

// Operands and their products for elements of a type.
template <Type kElement>
struct ElementMma {
  static constexpr Type kType = kElement;
  using Left = i32x4;  // 8 half-precision numbers
  using Right = i32x4;
  using Numbers = typename NumbersOf<kElement>::Type;
  MXORT_DEVICE Right MakeRight(const f32x8& x) {
    return __builtin_bit_cast(Right, __builtin_convertvector(x, Numbers));
  }
  template <class Sum>
  MXORT_DEVICE Sum Multiply(const Left& left, const Right& right, Sum sum) {
    return MultiplyHalf(__builtin_bit_cast(Numbers, left), __builtin_bit_cast(Numbers, right), sum);
  }
};
template <>
struct ElementMma<Type::kFloat> {
  static constexpr Type kType = Type::kFloat;
  using Left = f32x8;
  using Right = f32x8;
  MXORT_DEVICE Right MakeRight(const f32x8& x) { return x; }
  template <class Sum>
  MXORT_DEVICE Sum Multiply(const Left& left, const Right& right, Sum sum) {
    Unroll<0, kPerLane>(
        [&](auto i) __attribute__((always_inline)) { sum = MultiplyFloat(left[i.value], right[i.value], sum); });
    return sum;
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_MMA_H_
