// What the lanes of a wave, and the waves of a workgroup, tell each other.
#ifndef MXORT_KERNELS_HIP_WAVE_H_
#define MXORT_KERNELS_HIP_WAVE_H_

#include "kernels/hip/prelude.h"

namespace mxort::hip {

MXORT_DEVICE u32 FromLane(u32 x, u32 lane) {
  return static_cast<u32>(__builtin_amdgcn_ds_bpermute(static_cast<i32>(lane * 4), static_cast<i32>(x)));
}
MXORT_DEVICE float FromLane(float x, u32 lane) {
  return __builtin_bit_cast(float, FromLane(__builtin_bit_cast(u32, x), lane));
}

// The same in all lanes: the largest x of a wave whose lanes are all active.
MXORT_DEVICE u32 LargestOfWave(u32 x) {
  const auto largest = [](u32 a, u32 b) __attribute__((always_inline)) { return a > b ? a : b; };
  // row_ror:1, 2, 4, 8: every lane of 16 has seen all of them.
  Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
    x = largest(x, static_cast<u32>(
                       __builtin_amdgcn_update_dpp(0, static_cast<i32>(x), 0x120 + (1 << i.value), 0xF, 0xF, false)));
  });
  u32 all = 0;
  Unroll<0, 4>([&](auto i) __attribute__((always_inline)) {
    all = largest(all, static_cast<u32>(__builtin_amdgcn_readlane(static_cast<i32>(x), 16 * i.value)));
  });
  return all;
}

// In a fixed order, the same in all lanes.
MXORT_DEVICE float SumOfWave(float x) {
  Unroll<0, 6>([&](auto i) __attribute__((always_inline)) { x += FromLane(x, Lane() ^ (1u << i.value)); });
  return x;
}

// A bit of each lane.
MXORT_DEVICE u64 Ballot(bool x) { return __builtin_amdgcn_ballot_w64(x); }
// How many bits of the lanes below this one are set.
MXORT_DEVICE u32 BitsBelow(u64 bits) {
  return __builtin_amdgcn_mbcnt_hi(static_cast<u32>(bits >> 32), __builtin_amdgcn_mbcnt_lo(static_cast<u32>(bits), 0));
}
MXORT_DEVICE u32 CountBits(u64 bits) { return static_cast<u32>(__builtin_popcountll(bits)); }

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_WAVE_H_
