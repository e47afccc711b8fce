// Products with up to 16 rows of A, as when a model makes one token after the other: bound by reading B, so every byte
// of it is read once, straight to registers, 16 bytes a lane. A workgroup computes some columns over a range of k; its
// waves take the steps in turn and add their sums through LDS. B is read along K or along its rows (Access).
#ifndef MXORT_KERNELS_HIP_PRODUCT_SKINNY_H_
#define MXORT_KERNELS_HIP_PRODUCT_SKINNY_H_

#include "kernels/hip/product_source.h"
#include "kernels/hip/product_tile.h"

namespace mxort::hip {

inline constexpr u32 kProductWaves = kProductThreads / kWave;
inline constexpr int kSkinnyAlongK = 4;  // fragments of 16 columns

// Of A: the chunk of row lane % 16 at k = kOfChunk * (lane / 16), `left` k exist.
template <Type kType>
MXORT_DEVICE u32x4 ActivationChunk(const ProductArgs& args, const u8* base, i32 left) {
  constexpr u32 kSize = kElementBytes<kType>, kOfChunk = kChunk<kType>;
  const Window window(base);
  const u32 lane = Lane(), row = lane % 16, first = lane / 16 * kOfChunk;
  const u32 k_bytes = static_cast<u32>(args.a.k) * kSize;
  const i32 mine = row < args.m ? left - static_cast<i32>(first) : 0;
  const u32 offset = row * (static_cast<u32>(args.a.row) * kSize) + first * k_bytes;
  if (args.a.access == static_cast<int>(Access::kAlongK)) return window.Load<16>(mine > 0 ? offset : kNowhere);
  return ElementChunk<kType>(window, offset, k_bytes, mine);
}

// The chunks of B that a wave multiplies in one step of 4 kOfChunk k. Fragment f, row l % 16:
//   along K     column 16 f + l % 16
//   along rows  column kOfChunk (l % 16) + f: a lane loads kOfChunk columns at a time, as many k, and transposes
template <Type kType, Access kAccess>
struct SkinnySource {
  static constexpr u32 kSize = kElementBytes<kType>, kOfChunk = kChunk<kType>;
  static constexpr int kFragments = kAccess == Access::kAlongK ? kSkinnyAlongK : static_cast<int>(kOfChunk);
  static constexpr u32 kColumns = 16 * kFragments;
  u32 row_bytes, k_bytes, columns;  // columns that exist

  MXORT_METHOD void Load(const u8* base, i32 left, u32x4 (&chunk)[kFragments]) const {
    const Window window(base);
    const u32 lane = Lane(), first = lane / 16 * kOfChunk;
    const i32 mine = left - static_cast<i32>(first);
    if constexpr (kAccess == Access::kAlongK) {
      Unroll<0, kFragments>([&](auto f) __attribute__((always_inline)) {
        const u32 column = f.value * 16 + lane % 16;
        chunk[f.value] = window.Load<16>(mine > 0 && column < columns ? column * row_bytes + first * kSize : kNowhere);
      });
    } else {
      u32x4 x[kOfChunk];
      const u32 column = lane % 16 * kOfChunk;
      Unroll<0, static_cast<int>(kOfChunk)>([&](auto e) __attribute__((always_inline)) {
        x[e.value] = window.Load<16>(e.value < mine && column < columns ? column * kSize + (first + e.value) * k_bytes
                                                                        : kNowhere);
      });
      Unroll<0, kFragments>(
          [&](auto f) __attribute__((always_inline)) { chunk[f.value] = TransposedChunk<kType, f.value>(x); });
    }
  }
  // Column of register i of fragment f in this lane.
  MXORT_DEVICE u32 ColumnOf(u32 f, u32 i) {
    const u32 row = Lane() / 16 * 4 + i;
    return kAccess == Access::kAlongK ? f * 16 + row : row * kOfChunk + f;
  }
};

template <Type kType, Access kAccess>
MXORT_DEVICE void ProductSkinny(const ProductArgs& args) {
  using B = SkinnySource<kType, kAccess>;
  constexpr u32 kStep = 4 * kChunk<kType>, kSize = kElementBytes<kType>, kPitch = B::kColumns + 4;
  static MXORT_LDS __attribute__((aligned(16))) float memory[kProductWaves][16 * kPitch];
  const u32 batch = GroupX() / args.tiles_n, column = GroupX() % args.tiles_n * B::kColumns, wave = WaveIndex();
  const u32 first = GroupY() * args.k_per_split;
  const u32 rest = args.k - first, end = first + (rest < args.k_per_split ? rest : args.k_per_split);
  const B b = {static_cast<u32>(args.b.row) * kSize, static_cast<u32>(args.b.k) * kSize, args.n - column};
  const u64 a_bytes = static_cast<u64>(args.a.k) * kSize, b_bytes = static_cast<u64>(args.b.k) * kSize;
  const u8* of_a = OfBatch<kType>(args, args.a, batch);
  const u8* of_b = OfBatch<kType>(args, args.b, batch) + column * (static_cast<u64>(args.b.row) * kSize);

  f32x4 sum[B::kFragments];
  Unroll<0, B::kFragments>([&](auto f) __attribute__((always_inline)) { sum[f.value] = f32x4{0, 0, 0, 0}; });
  // Two neighbouring steps at a time: whole cache lines of operands along K.
  for (u32 k = first + wave * 2 * kStep; k < end; k += kProductWaves * 2 * kStep) {
    u32x4 x[2], y[2][B::kFragments];
    Unroll<0, 2>([&](auto s) __attribute__((always_inline)) {
      const u32 at = k + s.value * kStep;
      const i32 left = static_cast<i32>(end) - static_cast<i32>(at);
      b.Load(of_b + at * b_bytes, left, y[s.value]);
      x[s.value] = ActivationChunk<kType>(args, of_a + at * a_bytes, left);
    });
    Unroll<0, 2>([&](auto s) __attribute__((always_inline)) {
      Unroll<0, B::kFragments>([&](auto f) __attribute__((always_inline)) {
        sum[f.value] = MultiplyChunks<kType>(y[s.value][f.value], x[s.value], sum[f.value]);
      });
    });
  }
  const u32 lane = Lane();
  Unroll<0, B::kFragments>([&](auto f) __attribute__((always_inline)) {
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      memory[wave][lane % 16 * kPitch + B::ColumnOf(f.value, i.value)] = sum[f.value][i.value];
    });
  });
  SynchronizeLds();
  const u32 row = Thread() / 16;
  Unroll<0, static_cast<int>(B::kColumns / 64)>([&](auto part) __attribute__((always_inline)) {
    const u32 local = part.value * 64 + Thread() % 16 * 4;
    f32x4 total = {0, 0, 0, 0};
    Unroll<0, static_cast<int>(kProductWaves)>([&](auto w) __attribute__((always_inline)) {
      total += *reinterpret_cast<const f32x4*>(&memory[w.value][row * kPitch + local]);
    });
    // Loads of several columns: these are whole (Access).
    StoreProducts<kType, kAccess == Access::kAlongRows>(args, batch, row, column + local, total);
  });
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_PRODUCT_SKINNY_H_
