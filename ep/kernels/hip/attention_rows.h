// What a tile of 16 or 32 rows sees, and its softmax. Lane l works on row l % 16 or l % 32; the keys are shared by the
// four or two lanes of a row, as the matrix instructions leave them (attention_mma.h, KeyOf).
//
// Scores are kept in units of log 2, so that a weight is one v_exp_f32. Rows that see nothing are zeros: with nothing
// seen yet the largest score is -inf, and weights are taken relative to 0 instead.
#ifndef MXORT_KERNELS_HIP_ATTENTION_ROWS_H_
#define MXORT_KERNELS_HIP_ATTENTION_ROWS_H_

#include "kernels/hip/args_attention.h"
#include "kernels/hip/attention_mma.h"
#include "kernels/hip/math.h"

namespace mxort::hip {

MXORT_DEVICE float Exp2(float x) { return __builtin_amdgcn_exp2f(x); }
MXORT_DEVICE float Larger(float a, float b) { return __builtin_fmaxf(a, b); }
// A kernel's arguments, loaded again where they are used: what only the beginning and the end need would otherwise
// occupy scalar registers all through the loop.
template <class Args>
MXORT_DEVICE const Args& Reloaded(const Args&) {
  typedef const __attribute__((address_space(4))) Args Constant;
  auto* args = (Constant*)__builtin_amdgcn_kernarg_segment_ptr();
  asm volatile("" : "+s"(args));
  return *(const Args*)args;
}

MXORT_DEVICE i32 Least(i32 a, i32 b) { return a < b ? a : b; }
MXORT_DEVICE i32 Most(i32 a, i32 b) { return a > b ? a : b; }

// combine(x, y) over the lanes of a row of a tile of kTileRows, in all of them.
template <int kTileRows, class Combine>
MXORT_DEVICE float OverRow(float x, const Combine& combine) {
  const auto bits = [](float f) __attribute__((always_inline)) { return __builtin_bit_cast(u32, f); };
  const auto number = [](u32 u) __attribute__((always_inline)) { return __builtin_bit_cast(float, u); };
#if defined(__gfx950__)
  if constexpr (kTileRows == 16) {
    const auto s = __builtin_amdgcn_permlane16_swap(bits(x), bits(x), false, false);
    x = combine(number(s[0]), number(s[1]));
  }
  const auto t = __builtin_amdgcn_permlane32_swap(bits(x), bits(x), false, false);
  return combine(number(t[0]), number(t[1]));
#else
  const auto other = [&](u32 mask) __attribute__((always_inline)) {
    const i32 at = static_cast<i32>((Lane() ^ mask) * 4);
    return number(static_cast<u32>(__builtin_amdgcn_ds_bpermute(at, static_cast<i32>(bits(x)))));
  };
  if constexpr (kTileRows == 16) {
    const float y = other(16);  // the lower lane's first, so that all get the same sum
    x = Lane() & 16 ? combine(y, x) : combine(x, y);
  }
  const float z = other(32);
  return Lane() & 32 ? combine(z, x) : combine(x, z);
#endif
}

// Positions that a cache of `capacity` has of so many, where it holds the last `window` and makes room for
// capacity - window + 1 at once (com.microsoft's GroupQueryAttention, "Windowed KV Cache").
MXORT_DEVICE i32 Resident(i32 positions, i32 capacity, i32 window) {
  const i32 room = capacity - window + 1;
  return positions <= capacity ? positions : positions - (positions - capacity + room - 1) / room * room;
}

MXORT_DEVICE u32 LengthOf(const DeviceLengths& lengths, u32 batch, u32 most) {
  if (!lengths.data) return most;
  i32 length = lengths.data[batch * static_cast<u32>(lengths.stride)] + lengths.plus;
  if (lengths.capacity) length = Resident(length - lengths.fresh, lengths.capacity, lengths.window) + lengths.fresh;
  return static_cast<u32>(Least(Most(length, 0), static_cast<i32>(most)));
}

// What all rows of some tiles of one head of keys have in common, in scalar registers.
struct Place {
  u32 batch, kv_head;
  u32 keys;              // there are for this batch
  i32 offset;            // a row at position p sees keys up to p + offset
  i32 begin, end;        // keys that some row sees
  i32 all_from, all_to;  // keys that all rows see, as far as causality and the window go
};
MXORT_DEVICE i32 FirstKey(const AttentionArgs& args, const Place& at, i32 position) {
  return args.causal && args.window > 0 ? Most(position + at.offset + 1 - args.window, 0) : 0;
}
MXORT_DEVICE i32 EndKey(const AttentionArgs& args, const Place& at, i32 position) {
  const i32 keys = static_cast<i32>(at.keys);
  return args.causal ? Most(Least(position + at.offset + 1, keys), 0) : keys;
}
MXORT_DEVICE Place PlaceOf(const AttentionArgs& args, u32 first_row, u32 rows) {
  Place at;
  const u32 batch = GroupY() / args.kv_heads, all = args.length * args.group;
  at.batch = batch;
  at.kv_head = GroupY() - batch * args.kv_heads;
  at.keys = Uniform(LengthOf(args.lengths, batch, args.keys));
  at.offset = args.from_end ? static_cast<i32>(at.keys) - static_cast<i32>(args.length) : args.offset;
  const u32 last_row = (first_row + rows < all ? first_row + rows : all) - 1;
  const i32 first = static_cast<i32>(first_row / args.group), last = static_cast<i32>(last_row / args.group);
  at.begin = FirstKey(args, at, first);
  at.end = EndKey(args, at, last);
  at.all_from = FirstKey(args, at, last);
  at.all_to = EndKey(args, at, first);
  return at;
}

// A lane's row.
struct Row {
  bool exists;  // else a copy of the last one, whose result is not stored
  u32 position, head;
  i32 begin, end;     // keys that it sees, as far as causality and the window go
  u64 mask, padding;  // where its masks begin, in elements
};
MXORT_DEVICE Row RowOf(const AttentionArgs& args, const Place& at, u32 row) {
  const u32 rows = args.length * args.group;
  Row r;
  r.exists = row < rows;
  const u32 within = r.exists ? row : rows - 1;
  r.position = within / args.group;
  r.head = at.kv_head * args.group + (within - r.position * args.group);
  r.begin = FirstKey(args, at, static_cast<i32>(r.position));
  r.end = EndKey(args, at, static_cast<i32>(r.position));
  r.mask = static_cast<u64>(at.batch * args.mask_batch + r.head * args.mask_head + r.position * args.mask_position);
  r.padding = static_cast<u64>(at.batch * args.padding_batch + r.position * args.padding_position);
  return r;
}

// What a row has gathered: the largest score, and the sum of this lane's weights relative to it.
struct Gathered {
  float largest = -kInfinity, total = 0;
};
MXORT_DEVICE float Reference(float largest) { return largest == -kInfinity ? 0.0f : largest; }

MXORT_DEVICE float Capped(const AttentionArgs& args, float product) {
  return args.softcap * kLog2E * Tanh(product * (args.scale / args.softcap));
}

// Which key a lane's number n is, of tiles of 16 rows of which it has 4 numbers each, or of 32 of which it has 16;
// behind the lane's first.
template <int kOfTile>
MXORT_DEVICE constexpr i32 KeyOf(int n) {
  return n / 4 * (kOfTile == 4 ? 16 : 8) + n % 4;
}

// to[n] += term(key, `within` the masks) for a lane's numbers of kTiles tiles, whose first key is `mine`. What a row
// does not see is read within the masks all the same, and made -inf by who calls: no number of a lane has a branch of
// its own.
template <class Product, int kTiles, class Term>
MXORT_DEVICE void AddTerms(Product (&to)[kTiles], i32 mine, u32 keys, const Term& term) {
  constexpr int kOfTile = sizeof(Product) / sizeof(float);
  Unroll<0, kTiles * kOfTile>([&](auto n) __attribute__((always_inline)) {
    const i32 key = mine + KeyOf<kOfTile>(n.value), last = static_cast<i32>(keys) - 1;
    to[n.value / kOfTile][n.value % kOfTile] += term(key <= last, static_cast<long long>(Least(key, last))) * kLog2E;
    if (n.value % 8 == 7) __builtin_amdgcn_sched_barrier(0);  // else addresses of all of them fill the registers
  });
}

// The masks' terms.
template <Type kType, class Product, int kTiles>
MXORT_DEVICE void AddMasks(const AttentionArgs& args, const Row& row, i32 mine, Product (&s)[kTiles]) {
  if (args.mask && args.mask_type == static_cast<int>(Type::kBool)) {
    AddTerms(s, mine, args.mask_keys, [&](bool within, long long key) __attribute__((always_inline)) {
      const u8 seen = static_cast<const u8*>(args.mask)[row.mask + static_cast<u64>(key * args.mask_key)];
      return within && seen ? 0.0f : -kInfinity;
    });
  } else if (args.mask) {
    AddTerms(s, mine, args.mask_keys, [&](bool within, long long key) __attribute__((always_inline)) {
      const float added = LoadOne<kType>(args.mask, row.mask + static_cast<u64>(key * args.mask_key));
      return within ? added : -kInfinity;
    });
  }
  if (args.padding) {
    AddTerms(s, mine, args.keys, [&](bool, long long key) __attribute__((always_inline)) {
      return args.padding[row.padding + static_cast<u64>(key)] ? 0.0f : args.filter;
    });
  }
}

// Products of kTiles blocks of 16 or 32 keys from `first` on, as many as there are rows in a tile, to scores; -inf
// where a row does not see a key.
template <Type kType, class Product, int kTiles>
MXORT_DEVICE void Scores(const AttentionArgs& args, const Place& at, const Row& row, i32 first, Product (&s)[kTiles]) {
  constexpr int kOfTile = sizeof(Product) / sizeof(float), kTileRows = kOfTile == 4 ? 16 : 32;
  const i32 mine = first + static_cast<i32>(Lane() / kTileRows * 4);
  const bool masked = args.mask != nullptr || args.padding != nullptr;
  const bool all_seen = first >= at.all_from && first + kTileRows * kTiles <= at.all_to;  // of all rows
  if (args.softcap > 0) {
    Unroll<0, kTiles>([&](auto t) __attribute__((always_inline)) {
      Unroll<0, kOfTile>(
          [&](auto i) __attribute__((always_inline)) { s[t.value][i.value] = Capped(args, s[t.value][i.value]); });
    });
  } else {
    Unroll<0, kTiles>([&](auto t) __attribute__((always_inline)) { s[t.value] *= args.scale * kLog2E; });
  }
  if (all_seen && !masked) return;
  if (masked) AddMasks<kType>(Reloaded(args), row, mine, s);
  Unroll<0, kTiles>([&](auto t) __attribute__((always_inline)) {
    Unroll<0, kOfTile>([&](auto i) __attribute__((always_inline)) {
      const i32 key = mine + KeyOf<kOfTile>(t.value * kOfTile + i.value);
      s[t.value][i.value] = key >= row.begin && key < row.end ? s[t.value][i.value] : -kInfinity;
    });
  });
}

// Weights 2^(s - largest) of scores; what was gathered before shrinks by the result, the same for all lanes of a row.
template <int kTiles>
MXORT_DEVICE float Weigh(f32x4 (&s)[kTiles], Gathered& gathered) {
  float largest = -kInfinity;
  Unroll<0, kTiles>([&](auto t) __attribute__((always_inline)) {
    Unroll<0, 4>([&](auto i) __attribute__((always_inline)) { largest = Larger(largest, s[t.value][i.value]); });
  });
  largest = Larger(gathered.largest, OverRow<16>(largest, Larger));
  const float reference = Reference(largest), shrinks = Exp2(gathered.largest - reference);
  f32x4 total = {0, 0, 0, 0};
  Unroll<0, kTiles>([&](auto t) __attribute__((always_inline)) {
    Unroll<0, 4>([&](auto i)
                     __attribute__((always_inline)) { s[t.value][i.value] = Exp2(s[t.value][i.value] - reference); });
    total += s[t.value];
  });
  gathered.total = gathered.total * shrinks + ((total[0] + total[2]) + (total[1] + total[3]));
  gathered.largest = largest;
  return shrinks;
}

// What a row's sums are multiplied with at the end, `total` being that of all its lanes; the sink is one more score,
// which `load` reads for a head.
template <class Load>
MXORT_DEVICE float Share(const AttentionArgs& args, u32 head, float largest, float total, const Load& load) {
  if (args.sink || args.smooth) {
    const float sink = args.sink ? load(args.sink, head) * kLog2E : 0.0f;
    const float reference = Reference(Larger(largest, sink)), factor = Exp2(Reference(largest) - reference);
    total = total * factor + Exp2(sink - reference);
    return total == 0 ? 0.0f : factor * __builtin_amdgcn_rcpf(total);
  }
  return total == 0 ? 0.0f : __builtin_amdgcn_rcpf(total);
}
template <Type kType>
MXORT_DEVICE float Share(const AttentionArgs& args, u32 head, float largest, float total) {
  return Share(args, head, largest, total,
               [](const void* from, u32 n) __attribute__((always_inline)) { return LoadOne<kType>(from, n); });
}

// The lane's row of the queries, of a tile of kTileRows, as right operands; zeros behind the head's size.
template <class Head, int kTileRows, int kSteps>
MXORT_DEVICE void LoadQueries(const AttentionArgs& args, const Place& at, const Row& row,
                              typename Head::Mma::Right (&q)[kSteps]) {
  constexpr Type kType = Head::Mma::kType;
  const u64 base = static_cast<u64>(at.batch * args.q_strides.batch + row.position * args.q_strides.position +
                                    row.head * args.q_strides.head);
  Unroll<0, kSteps>([&](auto step) __attribute__((always_inline)) {
    const u32 d = (step.value * (kWave / kTileRows) + Lane() / kTileRows) * kPerLane;
    f32x8 x = {0, 0, 0, 0, 0, 0, 0, 0};
    if (d < args.head_size) {
      Unroll<0, kPerLane>(
          [&](auto e) __attribute__((always_inline)) { x[e.value] = LoadOne<kType>(args.q, base + d + e.value); });
    }
    q[step.value] = Head::Mma::MakeRight(x);
  });
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_ROWS_H_
