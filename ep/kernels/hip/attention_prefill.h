// Attention of many rows: bound by the matrix instructions. A wave has a tile of 32 rows; a block of keys and values is
// read once for all waves of a workgroup, through registers to LDS (attention_block.h).
//
// The products of a block's keys are made a step ahead, so that a step's two chains, of which one is all matrix
// instructions and the other mostly not, know nothing of each other and fill each other's gaps:
//
//   step i:   | k(i+1) q^T --> scores(i+1) --> largest | LDS <-- k(i+2), v(i+1) <-- memory: k(i+3), v(i+2)
//             | scores(i) --> weights --> v(i)^T p^T   | barrier
#ifndef MXORT_KERNELS_HIP_ATTENTION_PREFILL_H_
#define MXORT_KERNELS_HIP_ATTENTION_PREFILL_H_

#include "kernels/hip/attention_block.h"

namespace mxort::hip {

// Weights are 2^(score - reference). The reference is raised to the largest score only where that is more than 2^8
// times the reference's weight: what a type holds of a weight is relative, and 2^8 times the number of keys is far from
// a float's limits, so results are as exact as with the largest; but what was summed need hardly ever be scaled.
inline constexpr float kSlack = 8;

// Rows of a wave: what they are and what they have gathered.
template <class Head, int kWaves>
struct PrefillRows {
  using Shape = PrefillShape<Head, kWaves>;
  using Mma = typename Head::Mma;
  Row row;
  float reference = -kInfinity, limit = -kInfinity, shift = 0;  // limit: reference + kSlack; shift: what scores are off
  f32x2 total = {0, 0};                                         // of this lane's weights
  float unit = 1;                                               // a score is a number of s times this
  typename Mma::Right q[Shape::kSteps];
  f32x16 s[Shape::kKeyTiles];
  f32x16 sum[Shape::kSlice];

  MXORT_METHOD PrefillRows(const AttentionArgs& args, const Place& at, u32 first_row) {
    row = RowOf(args, at, first_row + Lane() % kPrefillRows);
    LoadQueries<Head, kPrefillRows>(args, at, row, q);
    Unroll<0, Shape::kSlice>([&](auto j) __attribute__((always_inline)) { sum[j.value] = f32x16{}; });
  }

  // k q^T of a block.
  MXORT_METHOD void Multiply(const i32x4* keys, f32x16 (&to)[Shape::kKeyTiles]) const {
    Unroll<0, Shape::kKeyTiles>([&](auto t) __attribute__((always_inline)) { to[t.value] = f32x16{}; });
    Unroll<0, Shape::kSteps>([&](auto step) __attribute__((always_inline)) {
      Unroll<0, Shape::kKeyTiles>([&](auto t) __attribute__((always_inline)) {
        const auto left = ReadOperand<Shape>(keys, t.value * Shape::kSteps + step.value);
        to[t.value] = Mma::Multiply(left, q[step.value], to[t.value]);
      });
    });
  }

  // sum += v^T p^T, p being the weights of s.
  MXORT_METHOD void Add(const i32x4* values) {
    const f32x2 units = {unit, unit}, shifts = {shift, shift};
    Unroll<0, 2 * Shape::kKeyTiles>([&](auto t) __attribute__((always_inline)) {
      f32x8 weights;
      Unroll<0, kPerLane / 2>([&](auto i) __attribute__((always_inline)) {
        constexpr int n = t.value % 2 * kPerLane + 2 * i.value;
        const f32x2 product = {s[t.value / 2][n], s[t.value / 2][n + 1]};
        const f32x2 x = __builtin_elementwise_fma(product, units, shifts);
        const f32x2 w = {Exp2(x[0]), Exp2(x[1])};
        total += w;
        weights[2 * i.value] = w[0], weights[2 * i.value + 1] = w[1];
      });
      const auto p = Mma::MakeRight(weights);
      Unroll<0, Shape::kSlice>([&](auto j) __attribute__((always_inline)) {
        const auto left = ReadOperand<Shape>(values, t.value * Shape::kSlice + j.value);
        sum[j.value] = Mma::Multiply(left, p, sum[j.value]);
      });
    });
  }

  // Products become scores. kPlain: all rows see all keys of the block at `first`, and nothing but the scale makes a
  // score of a product.
  template <bool kPlain>
  MXORT_METHOD void Accept(const AttentionArgs& args, const Place& at, i32 first) {
    float largest = -kInfinity;
    if constexpr (!kPlain) Scores<Mma::kType>(Reloaded(args), at, row, first, s);
    unit = kPlain ? args.scale * kLog2E : 1.0f;
    Unroll<0, Shape::kKeyTiles>([&](auto t) __attribute__((always_inline)) {
      Unroll<0, 16>([&](auto i) __attribute__((always_inline)) { largest = Larger(largest, s[t.value][i.value]); });
    });
    largest = OverRow<kPrefillRows>(largest, Larger) * unit;
    if (__builtin_expect(__builtin_amdgcn_ballot_w64(largest > limit) != 0, false)) {
      largest = Larger(largest, reference);
      const float shrinks = Exp2(reference - Reference(largest));
      Unroll<0, Shape::kSlice>([&](auto j) __attribute__((always_inline)) { sum[j.value] *= shrinks; });
      total *= shrinks;
      reference = largest, limit = largest + kSlack, shift = -Reference(largest);
    }
  }

  // There are no scores.
  MXORT_METHOD void Forget() {
    Unroll<0, Shape::kKeyTiles>([&](auto t) __attribute__((always_inline)) { s[t.value] = f32x16{} - kInfinity; });
    unit = 1;
  }

  // A lane has two runs of neighbouring numbers of its row: stored 8 at a time.
  MXORT_METHOD void Store(const AttentionArgs& before, u32 first_row) const {
    const AttentionArgs& args = Reloaded(before);
    if (first_row >= args.length * args.group) return;
    const Place at = PlaceOf(args, first_row, kPrefillRows);
    const Row row = RowOf(args, at, first_row + Lane() % kPrefillRows);
    const float all = OverRow<kPrefillRows>(total[0] + total[1],
                                            [](float a, float b) __attribute__((always_inline)) { return a + b; });
    const float share = Share<Mma::kType>(args, row.head, reference, all);
    if (!row.exists) return;
    const long long to =
        at.batch * args.y_strides.batch + row.position * args.y_strides.position + row.head * args.y_strides.head;
    constexpr int kRun = 4 * Head::kSlice;
    Unroll<0, 2 * kRun / kPerLane>([&](auto chunk) __attribute__((always_inline)) {
      constexpr int run = chunk.value * kPerLane / kRun, begin = chunk.value * kPerLane % kRun;
      const u32 d = (2 * run + Lane() / kPrefillRows) * kRun + begin;
      f32x8 x;
      Unroll<0, kPerLane>([&](auto e) __attribute__((always_inline)) {
        constexpr int n = (begin + e.value) % Head::kSlice, i = (begin + e.value) / Head::kSlice;
        x[e.value] = sum[n % Shape::kSlice][n / Shape::kSlice * 8 + run * 4 + i] * share;
      });
      if (d >= args.value_size) return;
      if constexpr (Shape::kWide) {
        *reinterpret_cast<f32x8*>(static_cast<float*>(args.y) + to + d) = x;
      } else {
        *reinterpret_cast<i32x4*>(static_cast<u16*>(args.y) + to + d) = Mma::MakeRight(x);
      }
    });
  }
};

// The order of a step's instructions: a matrix instruction takes the time of eight others, so four vector ones come
// behind each, and operands are read four ahead. Left to itself clang 22 waits for each operand where it is used.
template <class Shape>
MXORT_DEVICE void Interleave() {
  if constexpr (!Shape::kWide) {
    constexpr int kMatrix = 0x8, kRead = 0x100, kVector = 0x2, kAhead = 4, kBehind = 4;
    __builtin_amdgcn_sched_group_barrier(kRead, kAhead, 0);
    Unroll<0, 2 * Shape::kKeyTiles * Shape::kSteps>([&](auto) __attribute__((always_inline)) {
      __builtin_amdgcn_sched_group_barrier(kMatrix, 1, 0);
      __builtin_amdgcn_sched_group_barrier(kRead, 1, 0);
      __builtin_amdgcn_sched_group_barrier(kVector, kBehind, 0);
    });
  }
}

// The blocks of a workgroup: those before and behind the plain ones, then the plain ones, where every row sees every
// key and a product becomes a score by the scale alone. These have a loop of their own, which is most of the work.
template <int kKeys>
struct Blocks {
  i32 count, others, first_other, first_plain;

  MXORT_METHOD Blocks(const AttentionArgs& args, const Place& at) {
    first_other = at.begin / kKeys * kKeys;
    first_plain = (at.all_from + kKeys - 1) / kKeys * kKeys;
    const bool possible = !args.mask && !args.padding && args.softcap <= 0 && args.scale > 0;
    const i32 plain = possible ? Most(at.all_to / kKeys * kKeys - first_plain, 0) / kKeys : 0;
    count = Most(at.end - first_other + kKeys - 1, 0) / kKeys;
    others = count - plain;
  }
  MXORT_METHOD i32 Plain(i32 n) const { return first_plain + (n - others) * kKeys; }
  // First key of block n.
  MXORT_METHOD i32 operator[](i32 n) const {
    if (n >= others) return Plain(n);
    const i32 at = first_other + n * kKeys;
    return at < first_plain ? at : at + (count - others) * kKeys;
  }
};

// Grid x: ceil(rows / kRows), grid y: batch * heads of keys. Workgroups of many keys, which causality puts last, first.
template <class Head, int kWaves>
MXORT_DEVICE void Prefill(const AttentionArgs& args) {
  using Shape = PrefillShape<Head, kWaves>;
  using Buffer = typename PrefillMemory<Shape>::Buffer;
  static MXORT_LDS PrefillMemory<Shape> memory;
  const u32 first_row = (args.tiles - 1 - GroupX()) * Shape::kRows;
  const Place all = PlaceOf(args, first_row, Shape::kRows);
  const u32 rows = args.length * args.group, own_row = first_row + WaveIndex() * kPrefillRows;
  const Place own = PlaceOf(args, own_row < rows ? own_row : first_row, kPrefillRows);
  const i32 own_end = own_row < rows ? own.end : 0;
  const Blocks<Shape::kKeys> blocks(args, all);
  PrefillRows<Head, kWaves> mine(args, own, own_row);
  Stage<Head, kWaves> stage(args, all);

  const auto fetch = [&](i32 n, i32 keys, i32 values) __attribute__((always_inline)) {  // of block n, the one before
    stage.LoadKeys(static_cast<u32>(keys), n < blocks.count);
    stage.LoadValues(static_cast<u32>(values), n - 1 < blocks.count);
  };
  Buffer *now = memory.buffer + Shape::kBuffers - 1, *then = memory.buffer;
  // Step n works on the values of block n and the keys of block n + 1.
  const auto finish = [&](Buffer& then) __attribute__((always_inline)) {
    if (Shape::kBuffers == 1) Meet();
    stage.Store(then.keys, then.values);
  };
  const auto step = [&](i32 n, const auto& first_key, const auto& work) __attribute__((always_inline)) {
    Meet();  // `now` is filled, `then` has been read
    work(n, *now);
    finish(*then);
    fetch(n + 3, first_key(n + 3), first_key(n + 2));
    Buffer* const last = now;
    now = then, then = last;
  };
  const auto seen = [&](i32 n) __attribute__((always_inline)) {  // block n by one of this wave's rows
    return blocks[n] < own_end && blocks[n] + Shape::kKeys > own.begin;
  };
  stage.LoadKeys(static_cast<u32>(blocks[0]), blocks.count > 0);
  stage.StoreKeys(now->keys);
  fetch(1, blocks[1], blocks[0]);

  const auto any = [&](i32 n) __attribute__((always_inline)) { return blocks[n]; };
  const auto plain_one = [&](i32 n) __attribute__((always_inline)) { return blocks.Plain(n); };
  i32 n = -1;
  for (; n + 1 < blocks.others; ++n) {
    step(n, any, [&](i32 n, const Buffer& from) __attribute__((always_inline)) {
      if (n >= 0 && seen(n)) mine.Add(from.values);
      if (seen(n + 1)) {
        mine.Multiply(from.keys, mine.s);
        mine.template Accept<false>(args, own, blocks[n + 1]);
      }
    });
  }
  if (blocks.count == 0) n = 0;
  if (n >= 0 && !seen(n)) mine.Forget();
  if (n < 0) {
    step(n++, plain_one, [&](i32, const Buffer& from) __attribute__((always_inline)) {
      mine.Multiply(from.keys, mine.s);
      mine.template Accept<true>(args, own, 0);
    });
  }
  const auto plain = [&](i32 n, const Buffer& from, Buffer& then) __attribute__((always_inline)) {
    Meet();
    f32x16 next[Shape::kKeyTiles];
    mine.Multiply(from.keys, next);
    mine.Add(from.values);
    Unroll<0, Shape::kKeyTiles>([&](auto t) __attribute__((always_inline)) { mine.s[t.value] = next[t.value]; });
    Interleave<Shape>();
    finish(then);
    fetch(n + 3, blocks.Plain(n + 3), blocks.Plain(n + 2));
    mine.template Accept<true>(args, own, 0);
  };
  for (; n + 2 < blocks.count; n += 2) {  // two, so that what is next becomes what is now without a move
    plain(n, *now, *then);
    plain(n + 1, *then, *now);
  }
  for (; n < blocks.count; ++n) {
    step(n, plain_one, [&](i32 n, const Buffer& from) __attribute__((always_inline)) {
      mine.Add(from.values);
      if (n + 1 >= blocks.count) return;
      mine.Multiply(from.keys, mine.s);
      mine.template Accept<true>(args, own, 0);
    });
  }
  mine.Store(args, own_row);
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_PREFILL_H_
