// New positions of queries, keys and values on their way: bias, RMS normalisation, rotary embedding in float, rounded
// once; keys and values also to their place in a cache, whose blocks are quantised here, once.
//
// A wave makes a head at a position: lane l its numbers l, l + 64, ... so that a block of 32 is half a wave.
#ifndef MXORT_KERNELS_HIP_ATTENTION_APPEND_H_
#define MXORT_KERNELS_HIP_ATTENTION_APPEND_H_

#include "kernels/hip/args_attention.h"
#include "kernels/hip/attention_rows.h"
#include "mx_formats.h"

namespace mxort::hip {

inline constexpr u32 kHeadTurns = kMostHeadSize / kWave;

MXORT_DEVICE u32 OfLane(u32 x, u32 lane) {
  return static_cast<u32>(__builtin_amdgcn_ds_bpermute(static_cast<i32>(lane * 4), static_cast<i32>(x)));
}

// Where in the sequence things are, for a batch and a new position.
struct NewPosition {
  u32 batch, position;  // of the new ones
  u32 stored;           // in a cache
  u32 rotation;         // row of cos and sin
};
MXORT_DEVICE u32 PastOf(const DeviceLengths& lengths, u32 batch, u32 past, u32 length, u32 capacity) {
  if (!lengths.data) return past;
  const i32 before = static_cast<i32>(LengthOf(lengths, batch, capacity)) - static_cast<i32>(length);
  return static_cast<u32>(Most(before, 0));
}
MXORT_DEVICE NewPosition PositionOf(const AppendArgs& before, u32 batch, u32 position) {
  const AppendArgs& args = Reloaded(before);
  NewPosition at;
  at.batch = batch;
  at.position = position;
  const u32 past = PastOf(args.lengths, batch, args.past, args.length, args.capacity);
  at.stored = past + position;
  // Rotated by positions, of which a cache that holds a window has fewer.
  DeviceLengths all = args.lengths;
  all.capacity = 0;
  const u32 turned = PastOf(all, batch, args.past, args.length, args.lengths.capacity ? 0x7fffffff : args.capacity);
  long long row = static_cast<long long>(turned) + position + static_cast<long long>(batch) * args.rotation_batch;
  if (args.ids)
    row = args.ids[batch * args.ids_batch + (args.ids_position ? position : 0)] + (args.ids_position ? 0 : position);
  const long long last = static_cast<long long>(args.positions) - 1;
  at.rotation = static_cast<u32>(row < 0 ? 0 : row > last ? last : row);
  return at;
}

// A head as it comes in, normalised.
struct HeadSource {
  const AppendArgs& args;
  const AppendPart& part;
  u64 from, bias;
  float norm;  // 1 / root mean square

  MXORT_METHOD HeadSource(const AppendArgs& a, const AppendPart& p, const NewPosition& at, u32 head)
      : args(a),
        part(p),
        from(static_cast<u64>(at.batch * p.from_strides.batch + at.position * p.from_strides.position +
                              head * p.from_strides.head)),
        bias(static_cast<u64>(head) * p.size),
        norm(1) {
    if (!p.norm) return;
    float squares = 0;
    Unroll<0, kHeadTurns>([&](auto k) __attribute__((always_inline)) {
      const u32 e = Lane() + k.value * kWave;
      if (e < part.size) {
        const float x = Number(e);
        squares += x * x;
      }
    });
    for (u32 mask = kWave / 2; mask > 0; mask /= 2) {
      squares += __builtin_bit_cast(float, OfLane(__builtin_bit_cast(u32, squares), Lane() ^ mask));
    }
    norm = __builtin_amdgcn_rsqf(squares / static_cast<float>(part.size) + args.epsilon);
  }
  MXORT_METHOD float Number(u32 e) const {
    const float x = LoadOne(args.type, part.from, from + e);
    return part.bias ? x + LoadOne(args.type, part.bias, bias + e) : x;
  }
  MXORT_METHOD float Normalised(u32 e) const {
    return part.norm ? Number(e) * norm * LoadOne(args.type, part.norm, e) : Number(e);
  }
  MXORT_METHOD float Rotated(u32 e, const NewPosition& at) const {
    if (!part.rotary || e >= 2 * args.pairs) return Normalised(e);
    const bool second = args.interleaved ? e % 2 != 0 : e >= args.pairs;
    const u32 pair = args.interleaved ? e / 2 : second ? e - args.pairs : e;
    const u32 other = args.interleaved ? e ^ 1 : second ? e - args.pairs : e + args.pairs;
    const u64 index = static_cast<u64>(at.rotation) * args.pairs + pair;
    const float cos = LoadOne(args.type, args.cos, index), sin = LoadOne(args.type, args.sin, index);
    const float mine = Normalised(e) * cos, theirs = Normalised(other) * sin;
    return second ? mine + theirs : mine - theirs;
  }
};

// Half a wave's block of 32 by rule "even"; a block with a NaN or an infinity becomes zeros with the NaN scale.
template <class F>
MXORT_DEVICE void StoreBlock(u8* codes, u8* scales, u32 e, float x, bool exists) {
  u32 absmax = FloatBits(x) & kFloatMagnitude;
  for (u32 mask = kBlockSize / 2; mask > 0; mask /= 2) {
    const u32 other = OfLane(absmax, Lane() ^ mask);
    absmax = other > absmax ? other : absmax;
  }
  const bool finite = absmax < kFloatExponent;
  const u8 scale = finite ? ScaleEven<F>(absmax) : kScaleNaN;
  const float inverse = InverseScale(finite ? scale : static_cast<u8>(kScaleBias));
  const u32 code = RoundToElement<F>(finite ? x * inverse : 0.0f).code;
  if constexpr (CodeBits<F>() == 4) {
    const u32 next = OfLane(code, Lane() ^ 1);
    if (exists && e % 2 == 0) codes[e / 2] = static_cast<u8>(code | next << 4);
  } else {
    if (exists) codes[e] = static_cast<u8>(code);
  }
  if (exists && e % kBlockSize == 0) scales[e / kBlockSize] = scale;
}

MXORT_DEVICE void AppendHead(const AppendArgs& args, const AppendPart& part, const NewPosition& at, u32 head) {
  const u32 position = part.past ? at.stored : at.position;
  if (part.past && position >= args.capacity) return;
  const HeadSource source(args, part, at, head);
  const u64 to = static_cast<u64>(at.batch * part.to_strides.batch + position * part.to_strides.position +
                                  head * part.to_strides.head);
  const auto format = static_cast<CacheFormat>(part.format);
  Unroll<0, kHeadTurns>([&](auto k) __attribute__((always_inline)) {
    if (k.value * kWave >= part.size) return;
    const u32 e = Lane() + k.value * kWave;
    const bool exists = e < part.size;
    const float x = exists ? source.Rotated(e, at) : 0.0f;
    if (format == CacheFormat::kPlain) {
      if (exists) StoreOne(args.type, part.to, to + e, x);
    } else if (format == CacheFormat::kMxfp8) {
      u8* row = static_cast<u8*>(part.to) + to;
      StoreBlock<E4M3>(row, row + part.size, e, x, exists);
    } else {
      u8* row = static_cast<u8*>(part.to) + to;
      StoreBlock<E2M1>(row, row + part.size / 2, e, x, exists);
    }
  });
}

// Grid x: batch * length * ceil(heads of all parts / 4).
MXORT_DEVICE void Append(const AppendArgs& args) {
  const u32 all = args.part[0].heads + args.part[1].heads + args.part[2].heads;
  const u32 groups = (all + kAttentionWaves - 1) / kAttentionWaves, row = GroupX() / groups;
  u32 head = (GroupX() - row * groups) * kAttentionWaves + WaveIndex();
  const u32 batch = row / args.length;
  const NewPosition at = PositionOf(args, batch, row - batch * args.length);
  Unroll<0, 3>([&](auto p) __attribute__((always_inline)) {
    const AppendArgs& again = Reloaded(args);  // a part's own numbers only while it is worked on
    const AppendPart& part = again.part[p.value];
    if (head < part.heads && part.to) AppendHead(again, part, at, head);
    head -= part.heads;  // of those before, a number beyond all heads
  });
}

// Bytes [begin, end) of a head's cache, multiples of a T's; zeros where there is no source.
template <class T>
MXORT_DEVICE void CopyRange(const u8* from, u8* to, u64 begin, u64 end, u32 groups) {
  const u64 threads = kAttentionWaves * kWave;
  for (u64 i = begin / sizeof(T) + GroupX() * threads + Thread(); i < end / sizeof(T); i += groups * threads) {
    reinterpret_cast<T*>(to)[i] = from ? reinterpret_cast<const T*>(from)[i] : T{};
  }
}

// Grid x: `groups`, grid y: batch * heads of keys.
MXORT_DEVICE void CopyCache(const CopyCacheArgs& args) {
  const u32 batch = GroupY() / args.kv_heads;
  const u32 past = PastOf(args.lengths, batch, args.past, args.length, args.to_capacity);
  Unroll<0, 2>([&](auto i) __attribute__((always_inline)) {
    if (args.from[i.value] == args.to[i.value]) return;
    const u64 row = args.row_bytes[i.value];
    u8* to = static_cast<u8*>(args.to[i.value]) + GroupY() * args.to_capacity * row;
    const u8* from = static_cast<const u8*>(args.from[i.value]) + GroupY() * args.from_capacity * row;
    const u64 copied = (past < args.from_capacity ? past : args.from_capacity) * row;
    const u64 zeros = (past + args.length) * row, end = args.to_capacity * row;
    if (row % sizeof(u32x4) == 0) {
      CopyRange<u32x4>(from, to, 0, copied, args.groups);
      CopyRange<u32x4>(nullptr, to, zeros, end, args.groups);
    } else {
      CopyRange<u16>(from, to, 0, copied, args.groups);
      CopyRange<u16>(nullptr, to, zeros, end, args.groups);
    }
  });
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_APPEND_H_
