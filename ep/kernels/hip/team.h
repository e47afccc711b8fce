// Lanes that share a row, and what they add up: the same in the same order whatever kernel they belong to.
#ifndef MXORT_KERNELS_HIP_TEAM_H_
#define MXORT_KERNELS_HIP_TEAM_H_

#include "kernels/hip/args_rows.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/prelude.h"
#include "kernels/hip/wave.h"

namespace mxort::hip {

struct Add {
  MXORT_METHOD float operator()(float x, float y) const { return x + y; }
};

inline constexpr u32 kRowWaves = kRowThreads / kWave;
inline constexpr u32 kReductions =
    4;  // that one kernel may do, each with LDS of its own, so that none waits for another

typedef __attribute__((address_space(3))) float* LdsFloats;

// The lanes that share a row: a wave, or kRowThreads of a workgroup, all of whose threads make the same calls.
template <bool kMany>
struct Team {
  static constexpr u32 kThreads = kMany ? kRowThreads : kWave;
  LdsFloats slots;  // kReductions * kRowWaves, of many
  MXORT_METHOD u64 Row() const { return kMany ? u64{GroupX()} : u64{GroupX()} * kRowWaves + WaveIndex(); }
  MXORT_METHOD u32 First() const { return kMany ? Thread() % kRowThreads : Lane(); }

  // Of all lanes, in a fixed order, the same in all of them. Every call of a kernel has another kSlot.
  template <u32 kSlot, class Op>
  MXORT_METHOD float Reduce(float x, const Op& op) const {
    static_assert(kSlot < kReductions);
    Unroll<0, 6>([&](auto i) __attribute__((always_inline)) { x = op(x, FromLane(x, Lane() ^ (1u << i.value))); });
    if constexpr (kMany) {
      if (Lane() == 0) slots[kSlot * kRowWaves + First() / kWave] = x;
      Synchronize();
      x = slots[kSlot * kRowWaves];
      Unroll<1, kRowWaves>([&](auto i)
                               __attribute__((always_inline)) { x = op(x, slots[kSlot * kRowWaves + i.value]); });
    }
    return x;
  }
};

template <bool kMany, class Body>
MXORT_DEVICE void ForRow(const Team<kMany>& team, u32 n, const Body& body) {
#pragma clang loop unroll(disable)
  for (u32 k = team.First(); k < n; k += Team<kMany>::kThreads) body(k);
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_TEAM_H_
