// Matrix instructions of the dense products: 16 bytes a lane of either operand.
//
// Lane l gives row l % 16 of its operand and, of 4 chunks of 16 bytes along K, chunk l / 16. The result has, in lane l
// and register i, row l % 16 of the second operand and row 4 (l / 16) + i of the first: columns of C, if that is B.
//
// float takes the float instruction, whose products are exact and whose sums round once an addition; so infinities and
// NaNs come out as they should. Cost of 16 x 16 x 32: 256 matrix clocks. Six products of three bf16 terms on either
// side would take 96 on gfx950 and 192 on gfx942, at 2^-23 of every |a b| lost and about nine vector instructions for
// every element of a tile; a model that minds the difference is better off in bf16, at 16.
#ifndef MXORT_KERNELS_HIP_PRODUCT_MMA_H_
#define MXORT_KERNELS_HIP_PRODUCT_MMA_H_

#include "kernels/hip/args.h"
#include "kernels/hip/prelude.h"

namespace mxort::hip {

typedef float f32x2 __attribute__((ext_vector_type(2)));
typedef _Float16 f16x4 __attribute__((ext_vector_type(4)));
typedef _Float16 f16x8 __attribute__((ext_vector_type(8)));
typedef short bf16bits4 __attribute__((ext_vector_type(4)));
typedef __bf16 bf16x8 __attribute__((ext_vector_type(8)));

template <Type kType>
inline constexpr u32 kElementBytes = kType == Type::kFloat ? 4 : 2;
// Elements of a chunk.
template <Type kType>
inline constexpr u32 kChunk = 16 / kElementBytes<kType>;

template <Type kType>
MXORT_DEVICE f32x4 MultiplyChunks(u32x4 first, u32x4 second, f32x4 sum) {
  if constexpr (kType == Type::kFloat) {
    const f32x4 x = __builtin_bit_cast(f32x4, first), y = __builtin_bit_cast(f32x4, second);
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      sum = __builtin_amdgcn_mfma_f32_16x16x4f32(x[i.value], y[i.value], sum, 0, 0, 0);
    });
    return sum;
  } else {
#if defined(__gfx950__)
    if constexpr (kType == Type::kFloat16) {
      return __builtin_amdgcn_mfma_f32_16x16x32_f16(__builtin_bit_cast(f16x8, first), __builtin_bit_cast(f16x8, second),
                                                    sum, 0, 0, 0);
    } else {
      return __builtin_amdgcn_mfma_f32_16x16x32_bf16(__builtin_bit_cast(bf16x8, first),
                                                     __builtin_bit_cast(bf16x8, second), sum, 0, 0, 0);
    }
#else
    Unroll<0, 2>([&](auto i) __attribute__((always_inline)) {
      const u32x2 x = {first[2 * i.value], first[2 * i.value + 1]}, y = {second[2 * i.value], second[2 * i.value + 1]};
      if constexpr (kType == Type::kFloat16) {
        sum = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(f16x4, x), __builtin_bit_cast(f16x4, y), sum, 0,
                                                    0, 0);
      } else {
        sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(bf16bits4, x),
                                                        __builtin_bit_cast(bf16bits4, y), sum, 0, 0, 0);
      }
    });
    return sum;
#endif
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_PRODUCT_MMA_H_
