// Blocks of keys and values on their way to the waves of a workgroup: memory -> registers -> LDS, there as the operands
// of the matrix instructions of tiles of 32 rows (attention_mma.h): lane l's 16 bytes of an operand at 16 l, so that
// reads are linear. Values are turned on the way, once for the workgroup: operand j of 16 keys has, as row r, column
// kColumns (r % 16) + kColumns / 2 (r / 16) + j, so that who stages reads neighbouring columns of 4 keys, as large
// loads.
#ifndef MXORT_KERNELS_HIP_ATTENTION_BLOCK_H_
#define MXORT_KERNELS_HIP_ATTENTION_BLOCK_H_

#include "kernels/hip/attention_decode.h"

namespace mxort::hip {

template <class Head, int kWavesOfGroup>
struct PrefillShape {
  static constexpr bool kWide = Head::Mma::kType == Type::kFloat;
  static constexpr int kWaves = kWavesOfGroup, kRows = static_cast<int>(kPrefillRows) * kWaves;
  static constexpr int kKeyTiles =
      Head::kHeadSize * Head::kBytes <= 256 || Head::kHeadSize == 96 ? 2 : 1;  // of a block
  static constexpr int kKeys = 32 * kKeyTiles;
  static constexpr int kSteps = Head::kHeadSize / 16;                // operands of a tile of keys
  static constexpr int kSlice = Head::kHeadSize / 32;                // operands of 16 values
  static constexpr int kPlanes = kWide ? 2 : 1;                      // 16 bytes of a lane's operand each
  static constexpr int kOperandWords = kPlanes * kWave;              // of 16 bytes
  static constexpr int kWords = kKeyTiles * kSteps * kOperandWords;  // of a block's keys, and of its values
  static constexpr int kBuffers = 4 * kWords * 16 <= 64 << 10 ? 2 : 1;

  // Of a wave that stages: some of the 64 byte pieces of 16 keys, and some of the columns of 16 values.
  static constexpr int kParts = kWaves / (2 * kKeyTiles);  // waves that share these 16
  static constexpr int kPieces = Head::kSteps / kParts, kColumns = Head::kSlice / kParts;
  static constexpr int kColumnWords = kColumns * Head::kBytes / 4;
  static_assert(kPieces * kParts == Head::kSteps && kColumnWords * 4 * kParts == Head::kSlice * Head::kBytes);
};

// What a step reads: values of a block, keys of the next.
template <class Shape>
struct PrefillMemory {
  struct Buffer {
    i32x4 keys[Shape::kWords], values[Shape::kWords];
  } buffer[Shape::kBuffers];
};
// Operand n.
template <class Shape>
MXORT_DEVICE auto ReadOperand(const i32x4* operands, int n) {
  if constexpr (Shape::kPlanes == 2) {
    const i32x4 low = operands[2 * n * kWave + Lane()], high = operands[(2 * n + 1) * kWave + Lane()];
    return __builtin_bit_cast(f32x8, __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7));
  } else {
    return operands[n * kWave + Lane()];
  }
}

// A wave's share of what is on its way.
template <class Head, int kWaves>
struct Stage {
  using Shape = PrefillShape<Head, kWaves>;
  const void *k, *v;
  u32 k_bytes, v_bytes, k_stride, v_stride;
  u32 key_at[Shape::kPieces], value_at;  // bytes from the block's first key on
  u32 key_to, value_to;                  // where a lane's first numbers go, in units of 16 and of 8 bytes
  Words<Head::kKeyWords> keys[Shape::kPieces];
  Words<Shape::kColumnWords> values[4];

  MXORT_DEVICE u32 Tile() { return WaveIndex() / Shape::kParts; }
  MXORT_DEVICE u32 Part() { return WaveIndex() % Shape::kParts; }

  MXORT_METHOD Stage(const AttentionArgs& args, const Place& at) {
    const auto base = [&](const void* from, const HeadStrides& strides) __attribute__((always_inline)) {
      return static_cast<const u8*>(from) + (at.batch * strides.batch + at.kv_head * strides.head) * Head::kBytes;
    };
    const auto bytes = [&](u32 stride, u32 size) __attribute__((always_inline)) {
      return at.keys ? (at.keys - 1) * stride + Head::RowBytes(size) : 0;
    };
    k = base(args.k, args.k_strides), v = base(args.v, args.v_strides);
    k_stride = Head::Bytes(args.k_strides.position), v_stride = Head::Bytes(args.v_strides.position);
    // On their own: as parts of what one instruction loads they would occupy sixteen registers each in all loops.
    asm volatile("" : "+s"(k_stride), "+s"(v_stride));
    k_bytes = bytes(k_stride, args.head_size), v_bytes = bytes(v_stride, args.value_size);
    Unroll<0, Shape::kPieces>([&](auto piece) __attribute__((always_inline)) {
      const u32 d = 32 * (Part() * Shape::kPieces + piece.value) + Lane() / 16 * kPerLane;
      const u32 key = (16 * Tile() + Lane() % 16) * k_stride + d * Head::kBytes;
      key_at[piece.value] = d < args.head_size ? key : kNowhere;
    });
    const u32 column = Lane() % 16 * Head::kSlice + Part() * Shape::kColumns;
    value_at = (16 * Tile() + Lane() / 16 * 4) * v_stride + column * Head::kBytes;
    const u32 step = 2 * Part() * Shape::kPieces + Lane() / 32;
    key_to = (Tile() / 2 * Shape::kSteps + step) * Shape::kOperandWords + Lane() / 16 % 2 * 32 + Tile() % 2 * 16 +
             Lane() % 16;
    const u32 half = Lane() / 32, group = Lane() / 16 % 2;  // keys 4 group + 8 half ..
    const u32 run = Part() * Shape::kColumns / Shape::kSlice * 16, operand = Part() * Shape::kColumns % Shape::kSlice;
    value_to = ((Tile() * Shape::kSlice + operand) * Shape::kOperandWords + group * 32 + run + Lane() % 16) * 2 +
               half * (Shape::kWide ? 2 * kWave : 1);
  }
  // `exists`: else there is no such block, and nothing is fetched.
  MXORT_METHOD void LoadKeys(u32 first, bool exists) {
    const Rows rows(k, exists ? k_bytes : 0);
    Unroll<0, Shape::kPieces>([&](auto piece) __attribute__((always_inline)) {
      keys[piece.value] = rows.Load<Head::kKeyWords>(key_at[piece.value] + first * k_stride);
    });
  }
  MXORT_METHOD void LoadValues(u32 first, bool exists) {
    const Rows rows(v, exists ? v_bytes : 0);
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      values[i.value] = rows.Load<Shape::kColumnWords>(value_at + (first + i.value) * v_stride);
    });
  }

  MXORT_METHOD void Store(i32x4* to_keys, i32x4* to_values) const {
    StoreKeys(to_keys);
    StoreValues(to_values);
  }
  MXORT_METHOD void StoreKeys(i32x4* to) const {
    Unroll<0, Shape::kPieces>([&](auto piece) __attribute__((always_inline)) {
      Unroll<0, Shape::kPlanes>([&](auto p) __attribute__((always_inline)) {
        const auto& w = keys[piece.value].w;
        to[key_to + 2 * piece.value * Shape::kOperandWords + p.value * kWave] = __builtin_bit_cast(
            i32x4, u32x4{w[4 * p.value], w[4 * p.value + 1], w[4 * p.value + 2], w[4 * p.value + 3]});
      });
    });
  }
  MXORT_METHOD void StoreValues(i32x4* to) const {
    Unroll<0, Shape::kColumns>([&](auto j) __attribute__((always_inline)) {
      auto* at = reinterpret_cast<i32x2*>(to) + value_to +
                 (j.value % Shape::kSlice * Shape::kOperandWords + j.value / Shape::kSlice * 16) * 2;
      if constexpr (Shape::kWide) {
        *reinterpret_cast<i32x4*>(at) = __builtin_bit_cast(
            i32x4, u32x4{values[0].w[j.value], values[1].w[j.value], values[2].w[j.value], values[3].w[j.value]});
      } else {
        constexpr u32 kPick = j.value % 2 ? 0x07060302 : 0x05040100;
        constexpr int w = j.value / 2;
        *at = __builtin_bit_cast(i32x2, u32x2{__builtin_amdgcn_perm(values[1].w[w], values[0].w[w], kPick),
                                              __builtin_amdgcn_perm(values[3].w[w], values[2].w[w], kPick)});
      }
    });
  }
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_BLOCK_H_
