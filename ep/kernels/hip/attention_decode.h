// Attention of a few rows: bound by reading keys and values, so every byte of them is read once for each tile of 16
// rows, straight to registers. A workgroup takes a tile and one of `splits` ranges of its keys; its waves take blocks
// of 32 keys in turn and join their sums through LDS. Where there are several ranges their sums go to memory and
// attention_merge joins them.
#ifndef MXORT_KERNELS_HIP_ATTENTION_DECODE_H_
#define MXORT_KERNELS_HIP_ATTENTION_DECODE_H_

#include "kernels/hip/attention_cache.h"
#include "kernels/hip/attention_rows.h"

namespace mxort::hip {

inline constexpr u32 kKeysOfRound = kAttentionWaves * kAttentionKeys;  // a workgroup's turn

MXORT_DEVICE u32 PartialFloats(u32 value_size) { return kAttentionRows * (value_size + 2); }
// Keys of each range of a place's; the device knows how many there are, so the host knows only the number of ranges.
MXORT_DEVICE u32 KeysOfSplit(const Place& at, u32 splits) {
  const u32 keys = at.end > at.begin ? static_cast<u32>(at.end - at.begin) : 0;
  return ((keys + splits - 1) / splits + kKeysOfRound - 1) / kKeysOfRound * kKeysOfRound;
}

// Where a head of keys or values lies, as bytes.
template <class Head>
MXORT_DEVICE Rows HeadRows(const void* base, const HeadStrides& strides, const Place& at, u32 size) {
  const u64 offset = static_cast<u64>(at.batch * strides.batch + at.kv_head * strides.head) * Head::kBytes;
  const u32 bytes = at.keys ? (at.keys - 1) * Head::Bytes(strides.position) + Head::RowBytes(size) : 0;
  return Rows(static_cast<const u8*>(base) + offset, bytes);
}

template <class Head>
struct KeyBlock {
  typename Head::KeyPart part[2][Head::kSteps];
};
// Two blocks of 16 keys from `first` on. Behind the last key there are zeros.
template <class Head>
MXORT_DEVICE void LoadKeys(const AttentionArgs& args, const Rows& rows, u32 first, KeyBlock<Head>& keys) {
  const u32 stride = Head::Bytes(args.k_strides.position);
  Unroll<0, 2>([&](auto t) __attribute__((always_inline)) {
    const u32 row = (first + 16 * t.value + Lane() % 16) * stride;
    Unroll<0, Head::kSteps>([&](auto step) __attribute__((always_inline)) {
      keys.part[t.value][step.value] = Head::template LoadKey<step.value>(rows, row, args.head_size);
    });
  });
}

template <class Head>
MXORT_DEVICE void LoadValues(const AttentionArgs& args, const Rows& rows, u32 first,
                             typename Head::ValueSlice (&values)[kPerLane]) {
  const u32 stride = Head::Bytes(args.v_strides.position);
  Unroll<0, kPerLane>([&](auto e) __attribute__((always_inline)) {
    const u32 key = first + e.value / 4 * 16 + Lane() / 16 * 4 + e.value % 4;
    values[e.value] = Head::LoadValue(rows, key * stride, args.value_size);
  });
}

// The sums of all waves for a tile: 16 x kSize, and largest score and total by row.
template <int kSize>
struct TileSums {
  static constexpr u32 kStride = kSize + 4;
  float sums[kAttentionRows * kStride];
  float largest[kAttentionWaves][kAttentionRows], total[kAttentionWaves][kAttentionRows];
};

MXORT_DEVICE void Meet() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  // The fence's own wait is one that clang 22 may drop at the head of a loop, where what the loop's end has stored is
  // still on its way (hipsim stops there); this one stays.
  __builtin_amdgcn_s_waitcnt(0xc07f);  // lgkmcnt(0)
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// Adds the waves' sums one after the other, so that results do not vary.
template <class Head>
MXORT_DEVICE void JoinWaves(TileSums<Head::kHeadSize>& to, const f32x4 (&sum)[Head::kSlice], const Gathered& gathered,
                            float* largest, float* total) {
  const u32 row = Lane() % 16, group = Lane() / 16, wave = WaveIndex();
  const float of_row =
      OverRow<16>(gathered.total, [](float a, float b) __attribute__((always_inline)) { return a + b; });
  if (Lane() < 16) {
    to.largest[wave][row] = gathered.largest;
    to.total[wave][row] = of_row;
  }
  Meet();
  float most = -kInfinity, all = 0;
  Unroll<0, kAttentionWaves>([&](auto w)
                                 __attribute__((always_inline)) { most = Larger(most, to.largest[w.value][row]); });
  Unroll<0, kAttentionWaves>([&](auto w) __attribute__((always_inline)) {
    all += to.total[w.value][row] * Exp2(to.largest[w.value][row] - Reference(most));
  });
  const float factor = Exp2(gathered.largest - Reference(most));
  for (u32 turn = 0; turn < kAttentionWaves; ++turn) {
    if (turn == wave) {
      float* at = to.sums + row * to.kStride + group * 4 * Head::kSlice;
      Unroll<0, 4 * Head::kSlice>([&](auto n) __attribute__((always_inline)) {
        constexpr int i = n.value / Head::kSlice, j = n.value % Head::kSlice;
        const float x = sum[j][i] * factor;
        at[n.value] = turn ? at[n.value] + x : x;
      });
    }
    Meet();
  }
  *largest = most;
  *total = all;
}

template <class Head>
MXORT_DEVICE void StoreTile(const AttentionArgs& before, const Place& at, u32 first_row, u32 split,
                            TileSums<Head::kHeadSize>& from, float largest, float total) {
  const AttentionArgs& args = Reloaded(before);
  const u32 size = args.value_size, tile = first_row / kAttentionRows;
  const bool whole = args.splits == 1;
  float* partial = whole ? nullptr
                         : args.partial + ((static_cast<u64>(GroupY()) * args.tiles + tile) * args.splits + split) *
                                              PartialFloats(size);
  // Every lane has row l % 16: the first 16 of the workgroup say what the others multiply with.
  if (Thread() < kAttentionRows) {
    const Row row = RowOf(args, at, first_row + Thread());
    from.largest[0][Thread()] = whole ? Share<Head::Mma::kType>(args, row.head, largest, total) : 1.0f;
    if (!whole) {
      partial[kAttentionRows * size + Thread()] = largest;
      partial[kAttentionRows * (size + 1) + Thread()] = total;
    }
  }
  Meet();
  for (u32 index = Thread(); index < kAttentionRows * size; index += kAttentionWaves * kWave) {
    const u32 r = index / size, d = index - r * size;
    const float x = from.sums[r * from.kStride + d] * from.largest[0][r];
    if (!whole) {
      partial[index] = x;
      continue;
    }
    const Row row = RowOf(args, at, first_row + r);
    if (row.exists) {
      const long long to =
          at.batch * args.y_strides.batch + row.position * args.y_strides.position + row.head * args.y_strides.head + d;
      StoreOne<Head::Mma::kType>(args.y, static_cast<u64>(to), x);
    }
  }
}

// Grid x: tiles * splits, grid y: batch * heads of keys.
template <class Head>
MXORT_DEVICE void Decode(const AttentionArgs& args) {
  using Mma = typename Head::Mma;
  static MXORT_LDS __attribute__((aligned(16))) TileSums<Head::kHeadSize> memory;
  const u32 tile = GroupX() / args.splits, split = GroupX() - tile * args.splits, first_row = tile * kAttentionRows;
  const Place at = PlaceOf(args, first_row, kAttentionRows);
  const Row row = RowOf(args, at, first_row + Lane() % 16);
  const u32 some = KeysOfSplit(at, args.splits), begin = static_cast<u32>(at.begin) + split * some;
  const u32 last = static_cast<u32>(Most(at.end, 0)), end = last < begin + some ? last : begin + some;
  if (begin >= end && args.splits > 1) return;  // attention_merge knows

  typename Mma::Right q[Head::kSteps];
  LoadQueries<Head, 16>(args, at, row, q);
  const Rows k = HeadRows<Head>(args.k, args.k_strides, at, args.head_size);
  const Rows v = HeadRows<Head>(args.v, args.v_strides, at, args.value_size);
  Gathered gathered;
  f32x4 sum[Head::kSlice];
  Unroll<0, Head::kSlice>([&](auto j) __attribute__((always_inline)) { sum[j.value] = f32x4{0, 0, 0, 0}; });
  KeyBlock<Head> keys;
  u32 first = begin + WaveIndex() * kAttentionKeys;
  if (first < end) LoadKeys<Head>(args, k, first, keys);
  for (; first < end; first += kKeysOfRound) {
    typename Head::ValueSlice values[kPerLane];
    LoadValues<Head>(args, v, first, values);
    f32x4 s[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    Unroll<0, Head::kSteps>([&](auto step) __attribute__((always_inline)) {
      Unroll<0, 2>([&](auto t) __attribute__((always_inline)) {
        s[t.value] = Mma::Multiply(Head::Key(keys.part[t.value][step.value]), q[step.value], s[t.value]);
      });
    });
    if (first + kKeysOfRound < end) LoadKeys<Head>(args, k, first + kKeysOfRound, keys);
    Scores<Mma::kType>(args, at, row, static_cast<i32>(first), s);
    const float factor = Weigh(s, gathered);
    const auto p = Mma::MakeRight(__builtin_shufflevector(s[0], s[1], 0, 1, 2, 3, 4, 5, 6, 7));
    typename Head::Decoded decoded[kPerLane];
    Unroll<0, kPerLane>([&](auto e)
                            __attribute__((always_inline)) { decoded[e.value] = Head::Decode(values[e.value]); });
    Unroll<0, Head::kSlice>([&](auto j) __attribute__((always_inline)) {
      sum[j.value] = Mma::Multiply(Head::template Value<j.value>(decoded), p, sum[j.value] * factor);
    });
  }
  float largest, total;
  JoinWaves<Head>(memory, sum, gathered, &largest, &total);
  StoreTile<Head>(args, at, first_row, split, memory, largest, total);
}

// Grid x: tiles, grid y: batch * heads of keys.
MXORT_DEVICE void MergeSplits(const AttentionArgs& args) {
  const u32 first_row = GroupX() * kAttentionRows, size = args.value_size;
  const Place at = PlaceOf(args, first_row, kAttentionRows);
  const u32 some = KeysOfSplit(at, args.splits);
  const u32 used = at.end > at.begin ? (static_cast<u32>(at.end - at.begin) + some - 1) / some : 0;
  const float* partials =
      args.partial + (static_cast<u64>(GroupY()) * args.tiles + GroupX()) * args.splits * PartialFloats(size);
  for (u32 index = Thread(); index < kAttentionRows * size; index += kAttentionWaves * kWave) {
    const u32 r = index / size;
    const Row row = RowOf(args, at, first_row + r);
    if (!row.exists) continue;
    float largest = -kInfinity, total = 0, sum = 0;
#pragma clang loop vectorize(disable)
    for (u32 i = 0; i < used; ++i) {
      largest = Larger(largest, partials[i * PartialFloats(size) + kAttentionRows * size + r]);
    }
    for (u32 i = 0; i < used; ++i) {
      const float* partial = partials + i * PartialFloats(size);
      const float factor = Exp2(partial[kAttentionRows * size + r] - Reference(largest));
      total += partial[kAttentionRows * (size + 1) + r] * factor;
      sum += partial[index] * factor;
    }
    const long long to = at.batch * args.y_strides.batch + row.position * args.y_strides.position +
                         row.head * args.y_strides.head + (index - r * size);
    const float share =
        Share(args, row.head, largest, total,
              [&](const void* from, u32 n) __attribute__((always_inline)) { return LoadOne(args.type, from, n); });
    StoreOne(args.type, args.y, static_cast<u64>(to), sum * share);
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_DECODE_H_
