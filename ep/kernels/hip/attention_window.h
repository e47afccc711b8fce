// A cache that holds a window: what a step leaves of it moves to its beginning.
//
// After T positions there are L(T) (Resident, attention_rows.h) of the last ones at rows 0 .. L - 1, never around an
// end. A step of one position moves rows up where there is no room, in place or from the cache before, and is then
// appended; one of several works in a buffer with room for all and leaves its last rows here.
#ifndef MXORT_KERNELS_HIP_ATTENTION_WINDOW_H_
#define MXORT_KERNELS_HIP_ATTENTION_WINDOW_H_

#include "kernels/hip/attention_decode.h"

namespace mxort::hip {

// Grid x: keys' pieces of kWindowPiece bytes of a row, then values', grid y: batch * heads of keys. A workgroup moves
// its piece of all rows from the first on, reading before it writes: rows move up only, so it may be in place.
MXORT_DEVICE void MoveWindow(const WindowArgs& args) {
  constexpr u32 kLanesOfRow = kWindowPiece / sizeof(u32x4), kRows = kAttentionWaves * kWave / kLanesOfRow, kTurns = 4;
  const u32 batch = GroupY() / args.kv_heads, pieces = (args.row_bytes + kWindowPiece - 1) / kWindowPiece;
  const u32 which = GroupX() / pieces, lane = Thread() % kLanesOfRow;
  const DeviceLengths& lengths = args.lengths;  // which there are, of all positions
  const i32 all = Most(lengths.data[batch * static_cast<u32>(lengths.stride)] + lengths.plus, 0);
  const i32 fresh = Least(static_cast<i32>(args.length), all);
  const i32 before = Resident(args.first ? 0 : all - fresh, args.capacity, args.window);
  const i32 have = before + (args.staged ? fresh : 0);
  const i32 filled = Resident(all, args.capacity, args.window), keep = filled - (args.staged ? 0 : fresh);
  const u8* from = static_cast<const u8*>(args.from[which]);
  u8* to = static_cast<u8*>(args.to[which]);
  if (have == keep && from == to) return;
  const u64 column = (GroupX() % pieces) * kWindowPiece + lane * sizeof(u32x4);
  from += (GroupY() * static_cast<u64>(args.from_capacity) + static_cast<u64>(have - keep)) * args.row_bytes + column;
  to += GroupY() * static_cast<u64>(args.capacity) * args.row_bytes + column;
  for (i32 row = filled + static_cast<i32>(Thread() / kLanesOfRow); args.clear && row < args.capacity;
       row += static_cast<i32>(kRows)) {
    if (column < args.row_bytes) *reinterpret_cast<u32x4*>(to + static_cast<u64>(row) * args.row_bytes) = u32x4{};
  }
  for (i32 first = 0; first < keep; first += kRows * kTurns) {
    const i32 row = first + static_cast<i32>(Thread() / kLanesOfRow);
    u32x4 x[kTurns];
    const auto each = [&](const auto& work) __attribute__((always_inline)) {
      Unroll<0, kTurns>([&](auto i) __attribute__((always_inline)) {
        const i32 n = row + static_cast<i32>(kRows) * i.value;
        if (n < keep && column < args.row_bytes) work(x[i.value], static_cast<u64>(n) * args.row_bytes);
      });
    };
    each([&](u32x4& y, u64 at) __attribute__((always_inline)) { y = *reinterpret_cast<const u32x4*>(from + at); });
    Meet();
    each([&](u32x4& y, u64 at) __attribute__((always_inline)) { *reinterpret_cast<u32x4*>(to + at) = y; });
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ATTENTION_WINDOW_H_
