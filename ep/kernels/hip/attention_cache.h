// Keys and values in memory as operands of the matrix instructions (attention_mma.h).
//
// Keys are the left operand of k q^T: lane l reads 8 numbers of key l % 16. Values are the left operand of v^T p^T,
// whose rows are columns of v, so a lane must hold 8 keys of one column. It reads `kSlice` = size / 16 neighbouring
// columns, kSlice (l % 16) .., of each of its 8 keys: then column kSlice (l % 16) + j of all 8 is row l % 16 of tile j,
// and no lane needs anything of another. The product of tile j leaves columns kSlice (4 (l / 16) + i) + j with lane l:
// over all tiles 4 kSlice neighbours.
//
// The 8 keys are those whose weights the product k q^T leaves with the lane: 4 (l / 16) + i of two tiles of 16.
#ifndef MXORT_KERNELS_HIP_ATTENTION_CACHE_H_
#define MXORT_KERNELS_HIP_ATTENTION_CACHE_H_

#include "kernels/hip/attention_mma.h"

namespace mxort::hip {

inline constexpr u32 kNowhere = 0x80000000u;  // an offset behind every buffer, with room for a buffer's size

template <int kWords>
struct Words {
  u32 w[kWords];
};

// A raw buffer: reads at offset >= bytes are zero. Extents below 2^31 bytes.
struct Rows {
  __amdgpu_buffer_rsrc_t buffer;
  MXORT_METHOD Rows(const void* base, u32 bytes)
      : buffer(__builtin_amdgcn_make_buffer_rsrc(const_cast<void*>(base), 0, static_cast<i32>(bytes), 0x00027000)) {}

  // kWords words from a byte offset on.
  template <int kWords>
  MXORT_METHOD Words<kWords> Load(u32 offset) const {
    typedef u32 u32x3 __attribute__((ext_vector_type(3)));
    Words<kWords> to;
    constexpr int kWhole = kWords / 4;
    Unroll<0, kWhole>([&](auto i) __attribute__((always_inline)) {
      const auto x = __builtin_bit_cast(
          u32x4, __builtin_amdgcn_raw_buffer_load_b128(buffer, static_cast<i32>(offset + 16 * i.value), 0, 0));
      Unroll<0, 4>([&](auto j) __attribute__((always_inline)) { to.w[4 * i.value + j.value] = x[j.value]; });
    });
    constexpr int kRest = kWords % 4, at = 4 * kWhole;
    const i32 rest = static_cast<i32>(offset + 16 * kWhole);
    if constexpr (kRest == 1) {
      to.w[at] = static_cast<u32>(__builtin_amdgcn_raw_buffer_load_b32(buffer, rest, 0, 0));
    } else if constexpr (kRest == 2) {
      const auto x = __builtin_bit_cast(u32x2, __builtin_amdgcn_raw_buffer_load_b64(buffer, rest, 0, 0));
      Unroll<0, 2>([&](auto j) __attribute__((always_inline)) { to.w[at + j.value] = x[j.value]; });
    } else if constexpr (kRest == 3) {
      const auto x = __builtin_bit_cast(u32x3, __builtin_amdgcn_raw_buffer_load_b96(buffer, rest, 0, 0));
      Unroll<0, 3>([&](auto j) __attribute__((always_inline)) { to.w[at + j.value] = x[j.value]; });
    }
    return to;
  }
};

// Column kColumn of eight keys' slices of half-precision numbers.
template <int kColumn, int kWords>
MXORT_DEVICE i32x4 ColumnOf(const Words<kWords> (&slice)[kPerLane]) {
  i32x4 to;
  Unroll<0, kPerLane / 2>([&](auto e) __attribute__((always_inline)) {
    const u32 even = slice[2 * e.value].w[kColumn / 2], odd = slice[2 * e.value + 1].w[kColumn / 2];
    to[e.value] = static_cast<i32>(__builtin_amdgcn_perm(odd, even, kColumn % 2 ? 0x07060302 : 0x05040100));
  });
  return to;
}

// Heads of up to kSize numbers of a type.
template <Type kType, int kSize>
struct PlainHead {
  using Mma = ElementMma<kType>;
  static constexpr int kHeadSize = kSize;
  static constexpr bool kAhead = true;       // keys are loaded a turn before they are used
  static constexpr int kSteps = kSize / 32;  // operands of a key
  static constexpr int kSlice = kSize / 16;  // tiles of values
  static constexpr int kBytes = kType == Type::kFloat ? 4 : 2;
  static constexpr int kKeyWords = kPerLane * kBytes / 4, kSliceWords = kSlice * kBytes / 4;
  using KeyPart = Words<kKeyWords>;
  using ValueSlice = Words<kSliceWords>;

  // Bytes of a key's head from the strides in elements.
  MXORT_DEVICE u32 Bytes(long long elements) { return static_cast<u32>(elements) * kBytes; }
  // Of the numbers themselves.
  MXORT_DEVICE u32 RowBytes(u32 size) { return size * kBytes; }

  // Of the key at a byte offset: numbers 32 step + 8 (l / 16) ..; zeros behind `size`.
  template <int kStep>
  MXORT_DEVICE KeyPart LoadKey(const Rows& rows, u32 row, u32 size) {
    const u32 d = 32 * kStep + Lane() / 16 * kPerLane;
    return rows.Load<kKeyWords>(d < size ? row + d * kBytes : kNowhere);
  }
  MXORT_DEVICE typename Mma::Left Key(const KeyPart& part) { return __builtin_bit_cast(typename Mma::Left, part); }

  // Columns kSlice (l % 16) .. of the value at a byte offset. Those behind the head are whatever comes next.
  MXORT_DEVICE ValueSlice LoadValue(const Rows& rows, u32 row, u32) {
    return rows.Load<kSliceWords>(row + Lane() % 16 * (kSlice * kBytes));
  }
  using Decoded = ValueSlice;
  MXORT_DEVICE Decoded Decode(const ValueSlice& slice) { return slice; }
  // Row l % 16 of tile kTile of eight keys' slices.
  template <int kTile>
  MXORT_DEVICE typename Mma::Left Value(const Decoded (&slice)[kPerLane]) {
    typename Mma::Left to;
    if constexpr (kType == Type::kFloat) {
      Unroll<0, kPerLane>([&](auto e) __attribute__((always_inline)) {
        to[e.value] = __builtin_bit_cast(float, slice[e.value].w[kTile]);
      });
    } else {
      Unroll<0, kPerLane / 2>([&](auto e) __attribute__((always_inline)) {
        to[e.value] = static_cast<i32>(__builtin_amdgcn_perm(
            slice[2 * e.value + 1].w[kTile / 2], slice[2 * e.value].w[kTile / 2], kTile % 2 ? 0x07060302 : 0x05040100));
      });
    }
    return to;
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_CACHE_H_
