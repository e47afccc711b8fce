// The tiled product: 4 waves, two by two, each kFragments x kFragments fragments of 16 x 16. Operands of any strides go
// through registers into LDS, where a row is kChunks chunks of 16 bytes along K; two stages, so that the loads of the
// next one are under way while this one is multiplied, with one barrier a stage.
#ifndef MXORT_KERNELS_HIP_PRODUCT_TILE_H_
#define MXORT_KERNELS_HIP_PRODUCT_TILE_H_

#include "kernels/hip/element.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/product_source.h"

namespace mxort::hip {

inline constexpr u32 kProductThreads = 256;

// One operand's part of a stage: kRows x kChunks chunks, some for each thread.
template <Type kType, u32 kRows, u32 kChunks>
struct Source {
  static constexpr u32 kSize = kElementBytes<kType>, kOfChunk = kChunk<kType>;
  static constexpr u32 kSlots = kRows * kChunks / kProductThreads;
  static constexpr u32 kPitch = kChunks * 16 + 16;  // bytes of a row in LDS: rows begin in different banks
  static constexpr u32 kBytes = kRows * kPitch;
  static constexpr int kWords = static_cast<int>(kSlots * kSize / 4);  // of a load along the rows; 0: half a word

  const u8* base;   // of the stage
  u64 stage_bytes;  // to the next stage
  u32 k_bytes;      // from k to k + 1
  Access access;
  u32 offset[kSlots];   // of each chunk; kNowhere: its row does not exist
  u32 first_k[kSlots];  // inside the stage
  u32 lds[kSlots];
  u32x4 data[kSlots];

  MXORT_METHOD void Init(const ProductOperand& operand, const u8* batch, u32 row, u32 rows, u32 k) {
    base = batch + (static_cast<u64>(row) * static_cast<u64>(operand.row) + k * static_cast<u64>(operand.k)) * kSize;
    k_bytes = static_cast<u32>(operand.k) * kSize;
    stage_bytes = static_cast<u64>(operand.k) * (kChunks * kOfChunk * kSize);
    access = static_cast<Access>(operand.access);
    const u32 row_bytes = static_cast<u32>(operand.row) * kSize, left = rows - row, thread = Thread();
    Unroll<0, static_cast<int>(kSlots)>([&](auto i) __attribute__((always_inline)) {
      // Neighbouring threads have neighbours in memory: chunks of a row, rows, or blocks of kSlots rows.
      const u32 slot = thread + i.value * kProductThreads;
      const u32 local = access == Access::kAlongK     ? slot / kChunks
                        : access == Access::kElements ? slot % kRows
                                                      : thread % (kRows / kSlots) * kSlots + i.value;
      const u32 chunk = access == Access::kAlongK     ? slot % kChunks
                        : access == Access::kElements ? slot / kRows
                                                      : thread / (kRows / kSlots);
      first_k[i.value] = chunk * kOfChunk;
      offset[i.value] = local < left ? local * row_bytes + first_k[i.value] * k_bytes : kNowhere;
      lds[i.value] = local * kPitch + chunk * 16;
    });
  }

  // Loads a stage of which `left` k exist, and moves on to the next.
  MXORT_METHOD void Load(i32 left) {
    const Window window(base);
    base += stage_bytes;
    if (access == Access::kAlongK) {
      Unroll<0, static_cast<int>(kSlots)>([&](auto i) __attribute__((always_inline)) {
        data[i.value] = window.Load<16>(static_cast<i32>(first_k[i.value]) < left ? offset[i.value] : kNowhere);
      });
    } else if (access == Access::kAlongRows) {
      u32x4 x[kOfChunk];
      const i32 mine = left - static_cast<i32>(first_k[0]);
      Unroll<0, static_cast<int>(kOfChunk)>([&](auto e) __attribute__((always_inline)) {
        x[e.value] = window.Load<kSlots * kSize>(e.value < mine ? offset[0] + e.value * k_bytes : kNowhere);
      });
      Unroll<0, static_cast<int>(kSlots)>(
          [&](auto i) __attribute__((always_inline)) { data[i.value] = TransposedChunk<kType, i.value>(x); });
    } else {
      Unroll<0, static_cast<int>(kSlots)>([&](auto i) __attribute__((always_inline)) {
        const i32 mine = left - static_cast<i32>(first_k[i.value]);
        data[i.value] = ElementChunk<kType>(window, offset[i.value], k_bytes, mine);
      });
    }
  }

  // The same of a stage of which every k exists, known to be read in this way. What is read along the rows stays as it
  // comes, so that nothing waits for it here, until StoreWhole or Arrange.
  template <Access kAccess>
  MXORT_METHOD void LoadWhole() {
    static_assert(kAccess != Access::kElements);
    const Window window(base);
    base += stage_bytes;
    if constexpr (kAccess == Access::kAlongK) {
      Unroll<0, static_cast<int>(kSlots)>(
          [&](auto i) __attribute__((always_inline)) { data[i.value] = window.Load<16>(offset[i.value]); });
    } else {
      Unroll<0, static_cast<int>(kOfChunk)>([&](auto e) __attribute__((always_inline)) {
        const u32x4 x = window.Load<kSlots * kSize>(offset[0] + e.value * k_bytes);
        Unroll<0, kWords>([&](auto w) __attribute__((always_inline)) {
          constexpr int kAt = e.value * kWords + w.value;
          data[kAt / 4][kAt % 4] = x[w.value];
        });
      });
    }
  }
  template <Access kAccess, int kSlot>
  MXORT_METHOD u32x4 WholeChunk(Constant<kSlot>) const {
    if constexpr (kAccess == Access::kAlongK) {
      return data[kSlot];
    } else {
      u32x4 x[kOfChunk];
      Unroll<0, static_cast<int>(kOfChunk) * kWords>([&](auto w) __attribute__((always_inline)) {
        x[w.value / kWords][w.value % kWords] = data[w.value / 4][w.value % 4];
      });
      return TransposedChunk<kType, kSlot>(x);
    }
  }
  template <Access kAccess>
  MXORT_METHOD void StoreWhole(u32 stage) const {
    constexpr u32 kApart = kAccess == Access::kAlongK ? kProductThreads / kChunks : 1;  // rows of a thread's chunks
    Unroll<0, static_cast<int>(kSlots)>([&](auto i) __attribute__((always_inline)) {
      WriteLds(stage + lds[0] + i.value * kApart * kPitch, WholeChunk<kAccess>(i));
    });
  }
  // As Load leaves it.
  template <Access kAccess>
  MXORT_METHOD void Arrange() {
    u32x4 chunk[kSlots];
    Unroll<0, static_cast<int>(kSlots)>(
        [&](auto i) __attribute__((always_inline)) { chunk[i.value] = WholeChunk<kAccess>(i); });
    Unroll<0, static_cast<int>(kSlots)>([&](auto i) __attribute__((always_inline)) { data[i.value] = chunk[i.value]; });
  }

  MXORT_METHOD void Store(u32 stage) const {
    Unroll<0, static_cast<int>(kSlots)>(
        [&](auto i) __attribute__((always_inline)) { WriteLds(stage + lds[i.value], data[i.value]); });
  }
};

// Stores C[batch, row, column .. column + 3], or the partial sums. kFours: N is a multiple of 4.
template <Type kType, bool kFours = false>
MXORT_DEVICE void StoreProducts(const ProductArgs& args, u32 batch, u32 row, u32 column, f32x4 sum) {
  if (row >= args.m) return;
  const u64 index = (static_cast<u64>(batch) * args.m + row) * args.n + column;
  if (args.splits > 1) {
    float* partial = args.partial + static_cast<u64>(GroupY()) * args.batches * args.m * args.n + index;
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      if (column + i.value < args.n) partial[i.value] = sum[i.value];
    });
    return;
  }
  float v[4];
  Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
    v[i.value] = args.alpha * sum[i.value];
    if (args.bias != nullptr && column + i.value < args.n) {
      const u64 at = row * static_cast<u64>(args.bias_row) + (column + i.value) * static_cast<u64>(args.bias_column);
      v[i.value] += args.beta * LoadOne<kType>(args.bias, at);
    }
  });
  if (kFours || args.n % 4 == 0) {  // and so is the index
    if (column >= args.n) return;
    if constexpr (kType == Type::kFloat) {
      *reinterpret_cast<f32x4*>(static_cast<float*>(args.c) + index) = f32x4{v[0], v[1], v[2], v[3]};
    } else {
      *reinterpret_cast<u32x2*>(static_cast<u16*>(args.c) + index) = u32x2{
          ToHalf(kType, v[0]) | u32{ToHalf(kType, v[1])} << 16, ToHalf(kType, v[2]) | u32{ToHalf(kType, v[3])} << 16};
    }
  } else {
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      if (column + i.value < args.n) StoreOne<kType>(args.c, index + i.value, v[i.value]);
    });
  }
}

template <Type kType, int kFragments, u32 kChunks>
MXORT_DEVICE void ProductTile(const ProductArgs& args) {
  constexpr u32 kTile = 32 * kFragments;
  using Operand = Source<kType, kTile, kChunks>;
  static MXORT_LDS __attribute__((aligned(16))) u8 memory[4 * Operand::kBytes];
  const u32 lds = LdsAddress(reinterpret_cast<LdsBytes>(reinterpret_cast<__UINTPTR_TYPE__>(&memory[0])));
  const u32 tiles = args.tiles_m * args.tiles_n, batch = GroupX() / tiles, tile = GroupX() % tiles;
  const u32 row = tile % args.tiles_m * kTile, column = tile / args.tiles_m * kTile;
  const u32 first = GroupY() * args.k_per_split;
  const u32 rest = args.k - first, count = rest < args.k_per_split ? rest : args.k_per_split;

  Operand a, b;
  a.Init(args.a, OfBatch<kType>(args, args.a, batch), row, args.m, first);
  b.Init(args.b, OfBatch<kType>(args, args.b, batch), column, args.n, first);
  f32x4 sum[kFragments][kFragments];  // [of B][of A]
  Unroll<0, kFragments * kFragments>([&](auto q) __attribute__((always_inline)) {
    sum[q.value / kFragments][q.value % kFragments] = f32x4{0, 0, 0, 0};
  });
  const u32 wave = WaveIndex(), lane = Lane();
  const u32 wave_row = wave % 2 * (kTile / 2), wave_column = wave / 2 * (kTile / 2);
  const u32 at = lane % 16 * Operand::kPitch + lane / 16 * 16;

  constexpr i32 kStage = static_cast<i32>(kChunks * kChunk<kType>);  // k
  i32 left = static_cast<i32>(count);
  u32 stage = lds, other = lds + 2 * Operand::kBytes;
  // The stage that has come is written and multiplied while load() fetches the next.
  const auto turn = [&](const auto& store, const auto& load) __attribute__((always_inline)) {
    store();
    SynchronizeLds();
    left -= kStage;
    load();
    __builtin_amdgcn_sched_barrier(0);
    const u32 of_a = stage + wave_row * Operand::kPitch + at;
    const u32 of_b = stage + Operand::kBytes + wave_column * Operand::kPitch + at;
    Unroll<0, static_cast<int>(kChunks / 4)>([&](auto s) __attribute__((always_inline)) {
      u32x4 x[kFragments], y[kFragments];
      Unroll<0, kFragments>([&](auto i) __attribute__((always_inline)) {
        constexpr u32 kAt = i.value * 16 * Operand::kPitch + s.value * 64;
        y[i.value] = ReadLds<u32x4>(of_b + kAt);
        x[i.value] = ReadLds<u32x4>(of_a + kAt);
      });
      Unroll<0, kFragments * kFragments>([&](auto q) __attribute__((always_inline)) {
        constexpr int n = q.value / kFragments, m = q.value % kFragments;
        sum[n][m] = MultiplyChunks<kType>(y[n], x[m], sum[n][m]);
      });
    });
    const u32 next = other;
    other = stage, stage = next;
  };
  // Nearly all stages of what models multiply: a loop for each way to read B, without a question in it.
  bool loaded = false;
  const auto whole = [&](auto of_b) __attribute__((always_inline)) {
    constexpr auto kOfA = Access::kAlongK, kOfB = static_cast<Access>(of_b.value);
    const auto load = [&]() __attribute__((always_inline)) {
      a.template LoadWhole<kOfA>();
      b.template LoadWhole<kOfB>();
    };
    const auto store = [&]() __attribute__((always_inline)) {
      a.template StoreWhole<kOfA>(stage);
      b.template StoreWhole<kOfB>(stage + Operand::kBytes);
    };
    load();
    while (left >= 2 * kStage) turn(store, load);
    b.template Arrange<kOfB>();
    loaded = true;
  };
  const bool along_k = b.access == Access::kAlongK, along_rows = b.access == Access::kAlongRows && Operand::kWords > 0;
  if (a.access == Access::kAlongK && left >= 2 * kStage && (along_k || along_rows)) {
    if (along_k) {
      whole(Constant<static_cast<int>(Access::kAlongK)>{});
    } else if constexpr (Operand::kWords > 0) {
      whole(Constant<static_cast<int>(Access::kAlongRows)>{});
    }
  }
  const auto load = [&]() __attribute__((always_inline)) {
    if (left <= 0) return;
    a.Load(left);
    b.Load(left);
  };
  const auto store = [&]() __attribute__((always_inline)) {
    a.Store(stage);
    b.Store(stage + Operand::kBytes);
  };
  if (!loaded) load();
  while (left > 0) turn(store, load);
  Unroll<0, kFragments * kFragments>([&](auto q) __attribute__((always_inline)) {
    constexpr int n = q.value / kFragments, m = q.value % kFragments;
    StoreProducts<kType>(args, batch, row + wave_row + m * 16 + lane % 16,
                         column + wave_column + n * 16 + lane / 16 * 4, sum[n][m]);
  });
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_PRODUCT_TILE_H_
