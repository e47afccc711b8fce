// Operands of a product, out of memory: any strides in, chunks of 16 bytes along K out.
#ifndef MXORT_KERNELS_HIP_PRODUCT_SOURCE_H_
#define MXORT_KERNELS_HIP_PRODUCT_SOURCE_H_

#include "kernels/hip/args_product.h"
#include "kernels/hip/prelude.h"
#include "kernels/hip/product_mma.h"

namespace mxort::hip {

// Offsets from a buffer's base are below 2^31 (the host sees to that); what lies behind reads zero.
inline constexpr u32 kNowhere = 0x80000000u;

// Memory from `base`, the same for all lanes, on; each lane loads at its own offset in bytes.
struct Window {
  __amdgpu_buffer_rsrc_t buffer;
  MXORT_METHOD explicit Window(const u8* base)
      : buffer(__builtin_amdgcn_make_buffer_rsrc(const_cast<u8*>(base), 0, static_cast<i32>(kNowhere), 0x00027000)) {}
  // kBytes in the lowest bits, one after the other.
  template <u32 kBytes>
  MXORT_METHOD u32x4 Load(u32 offset) const {
    const auto at = static_cast<i32>(offset);
    if constexpr (kBytes == 2) {
      return u32x4{static_cast<u16>(__builtin_amdgcn_raw_buffer_load_b16(buffer, at, 0, 0)), 0, 0, 0};
    } else if constexpr (kBytes == 4) {
      return u32x4{static_cast<u32>(__builtin_amdgcn_raw_buffer_load_b32(buffer, at, 0, 0)), 0, 0, 0};
    } else if constexpr (kBytes == 8) {
      const u32x2 x = __builtin_bit_cast(u32x2, __builtin_amdgcn_raw_buffer_load_b64(buffer, at, 0, 0));
      return u32x4{x[0], x[1], 0, 0};
    } else {
      return __builtin_bit_cast(u32x4, __builtin_amdgcn_raw_buffer_load_b128(buffer, at, 0, 0));
    }
  }
};

// Chunk number kRow of a block that was loaded k by k: x[e] has the elements of several rows at k = e.
template <Type kType, int kRow>
MXORT_DEVICE u32x4 TransposedChunk(const u32x4 (&x)[kChunk<kType>]) {
  if constexpr (kType == Type::kFloat) {
    return u32x4{x[0][kRow], x[1][kRow], x[2][kRow], x[3][kRow]};
  } else {
    constexpr u32 kHalves = kRow % 2 == 0 ? 0x05040100 : 0x07060302;
    u32x4 chunk;
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      chunk[i.value] = __builtin_amdgcn_perm(x[2 * i.value + 1][kRow / 2], x[2 * i.value][kRow / 2], kHalves);
    });
    return chunk;
  }
}

// A chunk at `offset` (kNowhere: zeros), its elements k_bytes apart, those from `left` on zeros.
template <Type kType>
MXORT_DEVICE u32x4 ElementChunk(const Window& window, u32 offset, u32 k_bytes, i32 left) {
  u32x4 x[kChunk<kType>];
  Unroll<0, static_cast<int>(kChunk<kType>)>([&](auto e) __attribute__((always_inline)) {
    x[e.value] = window.Load<kElementBytes<kType>>(e.value < left ? offset + e.value * k_bytes : kNowhere);
  });
  return TransposedChunk<kType, 0>(x);
}

// First element of an operand in batch number `batch`.
template <Type kType>
MXORT_DEVICE const u8* OfBatch(const ProductArgs& args, const ProductOperand& operand, u32 batch) {
  const u32 inner = batch % args.batch2, rest = batch / args.batch2;
  const long long at =
      rest / args.batch1 * operand.batch[0] + rest % args.batch1 * operand.batch[1] + inner * operand.batch[2];
  return static_cast<const u8*>(operand.data) + at * kElementBytes<kType>;
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_PRODUCT_SOURCE_H_
