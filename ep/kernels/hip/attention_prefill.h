// Attention of many rows: bound by the matrix instructions. A workgroup's four waves have 1 or 2 tiles of 16 rows each;
// a block of keys and values is read once for all of them, through registers (the next one on its way while this one
// is used) to LDS, as the operands of the matrix instructions: lane l's 16 bytes of an operand at 16 l, so that reads
// and writes are linear. Values are turned (attention_cache.h) on the way, once for the workgroup.
//
//   memory --block i + 1--> registers | LDS block i --> k q^T --> softmax --> v^T p^T    | barrier | registers --> LDS
#ifndef MXORT_KERNELS_HIP_ATTENTION_PREFILL_H_
#define MXORT_KERNELS_HIP_ATTENTION_PREFILL_H_

#include "kernels/hip/attention_decode.h"

namespace mxort::hip {

template <class Head>
struct PrefillShape {
  using Mma = typename Head::Mma;
  static constexpr bool kWide = Mma::kType == Type::kFloat;
  static constexpr int kRowTiles = !kWide && Head::kHeadSize <= 128 ? 2 : 1;  // of a wave
  static constexpr int kKeyTiles = Head::kHeadSize <= 128 ? 4 : 2;            // of a block
  static constexpr int kKeys = 16 * kKeyTiles;
  static constexpr int kRows = kAttentionRows * kRowTiles * kAttentionWaves;  // of a workgroup
  static constexpr int kParts = kAttentionWaves / kKeyTiles;                  // waves that share a tile of keys
  static constexpr int kSteps = Head::kSteps / kParts, kColumns = Head::kSlice / kParts;  // of a wave
  static constexpr int kPlanes = kWide ? 2 : 1;  // 16 bytes of a lane's operand each
  static constexpr int kColumnWords = kColumns * Head::kBytes / 4;
};

// A block of keys and of values in LDS: operand n's plane p of lane l is [(n * kPlanes + p) * 64 + l].
template <class Head>
struct PrefillMemory {
  using Shape = PrefillShape<Head>;
  i32x4 keys[Shape::kKeyTiles * Head::kSteps * Shape::kPlanes * kWave];
  i32x4 values[Shape::kKeyTiles / 2 * Head::kSlice * Shape::kPlanes * kWave];
};
template <class Head>
MXORT_DEVICE typename Head::Mma::Left ReadOperand(const i32x4* operands, int n) {
  if constexpr (PrefillShape<Head>::kPlanes == 2) {
    const i32x4 low = operands[2 * n * kWave + Lane()], high = operands[(2 * n + 1) * kWave + Lane()];
    return __builtin_bit_cast(f32x8, __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7));
  } else {
    return operands[n * kWave + Lane()];
  }
}

// A wave's share of a block on its way to LDS: of tile `wave % kKeyTiles`, some steps of the keys, and of the values
// columns of four keys, 4 (l / 16) ...
template <class Head>
struct Staged {
  using Shape = PrefillShape<Head>;
  Words<Head::kKeyWords> keys[Shape::kSteps];
  Words<Shape::kColumnWords> values[4];

  MXORT_METHOD void Load(const AttentionArgs& args, const Rows& k, const Rows& v, u32 first) {
    const u32 tile = WaveIndex() % Shape::kKeyTiles, part = WaveIndex() / Shape::kKeyTiles, lane = Lane();
    const u32 key = (first + 16 * tile + lane % 16) * Head::Bytes(args.k_strides.position);
    Unroll<0, Shape::kSteps>([&](auto step) __attribute__((always_inline)) {
      const u32 d = 32 * (part * Shape::kSteps + step.value) + lane / 16 * kPerLane;
      keys[step.value] = k.Load<Head::kKeyWords>(d < args.head_size ? key + d * Head::kBytes : kNowhere);
    });
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
      const u32 row = (first + 16 * tile + lane / 16 * 4 + i.value) * Head::Bytes(args.v_strides.position);
      const u32 column = lane % 16 * Head::kSlice + part * Shape::kColumns;
      values[i.value] = v.Load<Shape::kColumnWords>(row + column * Head::kBytes);
    });
  }
  MXORT_METHOD void Store(PrefillMemory<Head>& to) const {
    const u32 tile = WaveIndex() % Shape::kKeyTiles, part = WaveIndex() / Shape::kKeyTiles, lane = Lane();
    Unroll<0, Shape::kSteps>([&](auto step) __attribute__((always_inline)) {
      const u32 n = tile * Head::kSteps + part * Shape::kSteps + step.value;
      Unroll<0, Shape::kPlanes>([&](auto p) __attribute__((always_inline)) {
        const auto& w = keys[step.value].w;
        to.keys[(n * Shape::kPlanes + p.value) * kWave + lane] = __builtin_bit_cast(
            i32x4, u32x4{w[4 * p.value], w[4 * p.value + 1], w[4 * p.value + 2], w[4 * p.value + 3]});
      });
    });
    Unroll<0, Shape::kColumns>([&](auto j) __attribute__((always_inline)) {
      const u32 n = tile / 2 * Head::kSlice + part * Shape::kColumns + j.value, half = tile % 2;
      if constexpr (Shape::kWide) {
        to.values[(2 * n + half) * kWave + lane] = __builtin_bit_cast(
            i32x4, u32x4{values[0].w[j.value], values[1].w[j.value], values[2].w[j.value], values[3].w[j.value]});
      } else {
        constexpr u32 kPick = j.value % 2 ? 0x07060302 : 0x05040100;
        constexpr int w = j.value / 2;
        auto* at = reinterpret_cast<i32x2*>(to.values + n * kWave + lane) + half;
        *at = __builtin_bit_cast(i32x2, u32x2{__builtin_amdgcn_perm(values[1].w[w], values[0].w[w], kPick),
                                              __builtin_amdgcn_perm(values[3].w[w], values[2].w[w], kPick)});
      }
    });
  }
};

// Rows of a wave: what they are and what they have gathered.
template <class Head>
struct PrefillRows {
  using Shape = PrefillShape<Head>;
  using Mma = typename Head::Mma;
  Row row[Shape::kRowTiles];
  Gathered gathered[Shape::kRowTiles];
  typename Mma::Right q[Shape::kRowTiles][Head::kSteps];
  f32x4 sum[Shape::kRowTiles][Head::kSlice];

  MXORT_METHOD PrefillRows(const AttentionArgs& args, const Place& at, u32 first_row) {
    Unroll<0, Shape::kRowTiles>([&](auto r) __attribute__((always_inline)) {
      row[r.value] = RowOf(args, at, first_row + kAttentionRows * r.value + Lane() % 16);
      LoadQueries<Head>(args, at, row[r.value], q[r.value]);
      Unroll<0, Head::kSlice>([&](auto j)
                                  __attribute__((always_inline)) { sum[r.value][j.value] = f32x4{0, 0, 0, 0}; });
    });
  }

  // kPlain: all rows see all keys of the block, and nothing but the scale makes a score of a product.
  template <bool kPlain>
  MXORT_METHOD void Attend(const AttentionArgs& args, const Place& at, const PrefillMemory<Head>& block, i32 first) {
    f32x4 s[Shape::kRowTiles][Shape::kKeyTiles];
    Unroll<0, Shape::kKeyTiles>([&](auto t) __attribute__((always_inline)) {
      Unroll<0, Shape::kRowTiles>([&](auto r)
                                      __attribute__((always_inline)) { s[r.value][t.value] = f32x4{0, 0, 0, 0}; });
      Unroll<0, Head::kSteps>([&](auto step) __attribute__((always_inline)) {
        const auto left = ReadOperand<Head>(block.keys, t.value * Head::kSteps + step.value);
        Unroll<0, Shape::kRowTiles>([&](auto r) __attribute__((always_inline)) {
          s[r.value][t.value] = Mma::Multiply(left, q[r.value][step.value], s[r.value][t.value]);
        });
      });
    });
    typename Mma::Right p[Shape::kRowTiles][Shape::kKeyTiles / 2];
    Unroll<0, Shape::kRowTiles>([&](auto r) __attribute__((always_inline)) {
      if constexpr (!kPlain) Scores<Shape::kKeyTiles>(args, at, row[r.value], first, s[r.value]);
      const float factor = Weigh<Shape::kKeyTiles, !kPlain>(s[r.value], args.scale * kLog2E, gathered[r.value]);
      if (__builtin_amdgcn_ballot_w64(factor != 1.0f)) {
        Unroll<0, Head::kSlice>([&](auto j) __attribute__((always_inline)) { sum[r.value][j.value] *= factor; });
      }
      Unroll<0, Shape::kKeyTiles / 2>([&](auto t) __attribute__((always_inline)) {
        p[r.value][t.value] = Mma::MakeRight(
            __builtin_shufflevector(s[r.value][2 * t.value], s[r.value][2 * t.value + 1], 0, 1, 2, 3, 4, 5, 6, 7));
      });
    });
    Unroll<0, Shape::kKeyTiles / 2>([&](auto t) __attribute__((always_inline)) {
      Unroll<0, Head::kSlice>([&](auto j) __attribute__((always_inline)) {
        const auto left = ReadOperand<Head>(block.values, t.value * Head::kSlice + j.value);
        Unroll<0, Shape::kRowTiles>([&](auto r) __attribute__((always_inline)) {
          sum[r.value][j.value] = Mma::Multiply(left, p[r.value][t.value], sum[r.value][j.value]);
        });
      });
    });
  }

  // A lane has 4 kSlice neighbouring numbers of its row: stored 8 at a time.
  MXORT_METHOD void Store(const AttentionArgs& before, const Place& at) const {
    const AttentionArgs& args = Reloaded(before);
    Unroll<0, Shape::kRowTiles>([&](auto r) __attribute__((always_inline)) {
      const Row& own = row[r.value];
      const float total =
          OverRow(gathered[r.value].total, [](float a, float b) __attribute__((always_inline)) { return a + b; });
      const float share = Share(args, own.head, gathered[r.value].largest, total);
      if (!own.exists) return;
      const long long to =
          at.batch * args.y_strides.batch + own.position * args.y_strides.position + own.head * args.y_strides.head;
      Unroll<0, Head::kSlice / 2>([&](auto chunk) __attribute__((always_inline)) {
        const u32 d = Lane() / 16 * 4 * Head::kSlice + chunk.value * kPerLane;
        f32x8 x;
        Unroll<0, kPerLane>([&](auto e) __attribute__((always_inline)) {
          constexpr int n = chunk.value * kPerLane + e.value;
          x[e.value] = sum[r.value][n % Head::kSlice][n / Head::kSlice] * share;
        });
        if (d >= args.value_size) return;
        if constexpr (Shape::kWide) {
          *reinterpret_cast<f32x8*>(static_cast<float*>(args.y) + to + d) = x;
        } else {
          *reinterpret_cast<i32x4*>(static_cast<u16*>(args.y) + to + d) = Mma::MakeRight(x);
        }
      });
    });
  }
};

// A block is plain where every row of the workgroup sees all of it and a product becomes a score by the scale alone.
// Plain blocks have a loop of their own, which is most of the work; then come those before and behind them.
struct PlainRange {
  i32 begin, end;  // multiples of a block; begin == end: none
};
template <int kKeys>
MXORT_DEVICE PlainRange PlainOf(const AttentionArgs& args, const Place& at) {
  PlainRange range = {(at.all_from + kKeys - 1) / kKeys * kKeys, at.all_to / kKeys * kKeys};
  const bool plain = !args.mask && !args.padding && args.softcap <= 0 && args.scale > 0;
  if (!plain || range.end < range.begin) range.end = range.begin;
  return range;
}

// Grid x: ceil(rows / kRows), grid y: batch * heads of keys. Workgroups of many keys, which causality puts last, first.
template <class Head>
MXORT_DEVICE void Prefill(const AttentionArgs& args) {
  using Shape = PrefillShape<Head>;
  constexpr i32 kKeys = Shape::kKeys;
  static MXORT_LDS PrefillMemory<Head> memory;
  const u32 first_row = (args.tiles - 1 - GroupX()) * Shape::kRows;
  const Place all = PlaceOf(args, first_row, Shape::kRows);
  const u32 rows = args.length * args.group, own_row = first_row + WaveIndex() * (kAttentionRows * Shape::kRowTiles);
  const bool works = own_row < rows;
  const Place own = PlaceOf(args, works ? own_row : first_row, kAttentionRows * Shape::kRowTiles);
  PrefillRows<Head> mine(args, own, own_row);
  const Rows k = HeadRows<Head>(args.k, args.k_strides, all, args.head_size);
  const Rows v = HeadRows<Head>(args.v, args.v_strides, all, args.value_size);
  const PlainRange plain = PlainOf<kKeys>(args, all);
  Staged<Head> staged;
  // Of the blocks that are not plain, the one from `at` on.
  const auto other = [&](i32 at) __attribute__((always_inline)) {
    return at >= plain.begin && at < plain.end ? plain.end : at;
  };
  if (plain.begin < plain.end) staged.Load(args, k, v, static_cast<u32>(plain.begin));
  for (i32 first = plain.begin; first < plain.end; first += kKeys) {
    Meet();  // the block before has been used
    staged.Store(memory);
    Meet();
    if (first + kKeys < plain.end) staged.Load(args, k, v, static_cast<u32>(first + kKeys));
    mine.template Attend<true>(args, own, memory, first);
  }
  i32 first = other(all.begin / kKeys * kKeys);
  if (first < all.end) staged.Load(args, k, v, static_cast<u32>(first));
  while (first < all.end) {
    Meet();
    staged.Store(memory);
    Meet();
    const i32 next = other(first + kKeys);
    if (next < all.end) staged.Load(args, k, v, static_cast<u32>(next));
    if (works && first < own.end && first + kKeys > own.begin) mine.template Attend<false>(args, own, memory, first);
    first = next;
  }
  mine.Store(args, own);
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_PREFILL_H_
