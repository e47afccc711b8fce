// Which experts a row of logits chooses, and where its work goes: the rules of kernels/routing.cc.
#ifndef MXORT_KERNELS_HIP_EXPERTS_ROUTE_H_
#define MXORT_KERNELS_HIP_EXPERTS_ROUTE_H_

#include "kernels/hip/args_experts.h"
#include "kernels/hip/element.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/math.h"
#include "kernels/hip/wave.h"

namespace mxort::hip {

inline constexpr u32 kRouteWaves = kExpertsThreads / kWave;
inline constexpr int kLaneExperts = kMostExperts / kWave;

// Of one row, in a wave: lane l has experts l, l + 64, ...
struct Choices {
  u32 chosen;  // bit i: the lane's expert of group i
  float weight[kLaneExperts];
  bool nan;  // a logit is NaN, or the largest is infinite: no expert is chosen
};

// An unsigned number of the order of floats that are not NaN, both zeros alike; above 0.
MXORT_DEVICE u32 InOrder(float x) {
  const u32 bits = __builtin_bit_cast(u32, x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
MXORT_DEVICE float FromOrder(u32 key) { return __builtin_bit_cast(float, key >> 31 ? key & 0x7FFFFFFFu : ~key); }

// body(i) for the groups of 64 experts that exist.
template <class Body>
MXORT_DEVICE void ForGroups(u32 experts, const Body& body) {
  Unroll<0, kLaneExperts>([&](auto i) __attribute__((always_inline)) {
    if (static_cast<u32>(i.value * kWave) < experts) body(i);
  });
}

MXORT_DEVICE void Choose(const RouterLogits& router, u32 row, Choices* choices) {
  float logit[kLaneExperts];
  u32 key[kLaneExperts];  // 0: no expert, or one that is chosen already
  u32 most = 0;
  bool nan = false;
  Unroll<0, kLaneExperts>([&](auto i) __attribute__((always_inline)) { key[i.value] = 0, logit[i.value] = 0; });
  choices->chosen = 0;
  ForGroups(router.experts, [&](auto i) __attribute__((always_inline)) {
    const u32 expert = i.value * kWave + Lane();
    if (expert < router.experts) {
      logit[i.value] = LoadOne(router.type, router.logits, static_cast<u64>(row) * router.experts + expert);
      nan |= IsNaN(logit[i.value]);
      key[i.value] = InOrder(logit[i.value]);
    }
    most = key[i.value] > most ? key[i.value] : most;
  });
  const float largest = FromOrder(LargestOfWave(most));
  choices->nan = Ballot(nan) != 0 || AbsOf(largest) == kInfinity;
  if (choices->nan) return;

  float p[kLaneExperts], total = 0;
  ForGroups(router.experts, [&](auto i) __attribute__((always_inline)) {
    p[i.value] = key[i.value] != 0 ? Exp(logit[i.value] - largest) : 0.0f;
    total += p[i.value];
  });
#pragma clang loop unroll(disable)
  for (u32 n = 0; n < router.chosen; ++n) {
    most = 0;
    ForGroups(router.experts,
              [&](auto i) __attribute__((always_inline)) { most = key[i.value] > most ? key[i.value] : most; });
    const u32 best = LargestOfWave(most);
    bool found = false;  // of equal ones the first
    ForGroups(router.experts, [&](auto i) __attribute__((always_inline)) {
      const u64 equal = Ballot(key[i.value] == best);
      const bool first = !found && key[i.value] == best && BitsBelow(equal) == 0;
      found |= equal != 0;
      choices->chosen |= first ? 1u << i.value : 0u;
      key[i.value] = first ? 0 : key[i.value];
    });
  }
  if (router.normalize) {
    total = 0;
    ForGroups(router.experts, [&](auto i) __attribute__((always_inline)) {
      total += choices->chosen >> i.value & 1 ? p[i.value] : 0.0f;
    });
  }
  total = SumOfWave(total);
  ForGroups(router.experts,
            [&](auto i) __attribute__((always_inline)) { choices->weight[i.value] = Divide(p[i.value], total); });
}

// All of at most kFewRows rows, in one workgroup: the active experts by number, each with a slot for every row.
MXORT_DEVICE void RouteFew(const RouterLogits& router, const Slots& slots) {
  static MXORT_LDS float weights[kFewRows][kMostExperts];  // -1: not chosen
  static MXORT_LDS u32 lost[kFewRows];
#pragma clang loop unroll(disable)
  for (u32 row = WaveIndex(); row < router.rows; row += kRouteWaves) {
    Choices choices;
    Choose(router, row, &choices);
    ForGroups(router.experts, [&](auto i) __attribute__((always_inline)) {
      const bool chosen = !choices.nan && (choices.chosen >> i.value & 1);
      weights[row][i.value * kWave + Lane()] = chosen ? choices.weight[i.value] : -1.0f;
    });
    if (Lane() == 0) lost[row] = choices.nan ? 1u << row : 0;
  }
  Synchronize();
  u32 active = 0;
#pragma clang loop unroll(disable)
  for (u32 first = 0; first < router.experts; first += kWave) {
    const u32 expert = first + Lane();
    bool any = false;
#pragma clang loop unroll(disable)
    for (u32 row = 0; row < router.rows; ++row) any |= weights[row][expert] >= 0;
    const u64 bits = Ballot(any);
    const u32 tile = active + BitsBelow(bits);
    active += CountBits(bits);
    if (!any) continue;
    if (WaveIndex() == 0) slots.tiles[tile] = {static_cast<int>(expert), (tile + 1) * kFewRows};
#pragma clang loop unroll(disable)
    for (u32 row = WaveIndex(); row < kFewRows; row += kRouteWaves) {
      const float weight = row < router.rows ? weights[row][expert] : -1.0f;
      slots.row[tile * kFewRows + row] = weight >= 0 ? static_cast<int>(row) : -1;
      slots.weight[tile * kFewRows + row] = weight;
    }
  }
  if (Thread() == 0) {
    u32 nan = 0;
#pragma clang loop unroll(disable)
    for (u32 row = 0; row < router.rows; ++row) nan |= lost[row];
    slots.count[0] = active;
    slots.count[1] = nan;
  }
}

// Choices of a wave's rows, and how many of them chose each expert.
MXORT_DEVICE void Route(const RouteArgs& args) {
  static MXORT_LDS u32 counts[kRouteWaves][kMostExperts];
  const RouterLogits& router = args.router;
  const u32 wave = GroupX() * kRouteWaves + WaveIndex();
  if (wave >= args.waves) return;
  u32* own = counts[WaveIndex()];  // a lane's experts are its own
  ForGroups(router.experts, [&](auto i) __attribute__((always_inline)) { own[i.value * kWave + Lane()] = 0; });
  const u32 first = wave * args.wave_rows;
  const u32 end = router.rows - first < args.wave_rows ? router.rows : first + args.wave_rows;
#pragma clang loop unroll(disable)
  for (u32 row = first; row < end; ++row) {
    RouterLogits of_row = router;
    of_row.experts = OpaqueScalar(router.experts);  // else what follows from it for each group fills the registers
    Choices choices;
    Choose(of_row, row, &choices);
    const u64 at = static_cast<u64>(row) * router.chosen;
    if (choices.nan) {
      for (u32 i = Lane(); i < router.chosen; i += kWave) args.expert[at + i] = -1, args.weight[at + i] = 0;
      continue;
    }
    u32 before = 0;
    ForGroups(router.experts, [&](auto i) __attribute__((always_inline)) {
      const bool chosen = choices.chosen >> i.value & 1;
      const u64 bits = Ballot(chosen);
      if (chosen) {
        const u32 expert = i.value * kWave + Lane(), place = before + BitsBelow(bits);
        args.expert[at + place] = static_cast<int>(expert);
        args.weight[at + place] = choices.weight[i.value];
        args.rank[at + place] = static_cast<int>(own[expert]++);
      }
      before += CountBits(bits);
    });
  }
  ForGroups(router.experts, [&](auto i) __attribute__((always_inline)) {
    const u32 expert = i.value * kWave + Lane();
    if (expert < router.experts) args.counts[static_cast<u64>(wave) * router.experts + expert] = own[expert];
  });
}

// Tiles in the order of the experts, slots in the order of the rows. Every workgroup adds all counts for itself.
MXORT_DEVICE void Arrange(const ArrangeArgs& args) {
  constexpr u32 kThreads = kExpertsThreads, kOwn = kMostExperts / kThreads;
  static MXORT_LDS u32 sums[2][kMostExperts];  // tiles up to and with an expert, in two turns
  static MXORT_LDS u32 next[kMostExperts];     // slot of an expert's next row
  const u32 height = args.slots.height, first_wave = GroupX() * args.group_waves;
  u32 total[kOwn], before[kOwn], tiles[kOwn];
  Unroll<0, static_cast<int>(kOwn)>([&](auto i) __attribute__((always_inline)) {
    const u32 expert = i.value * kThreads + Thread();
    u32 all = 0, earlier = 0;
    if (expert < args.experts) {
#pragma clang loop unroll_count(4)
      for (u32 wave = 0; wave < args.waves; ++wave) {
        const u32 count = args.counts[static_cast<u64>(wave) * args.experts + expert];
        earlier += wave < first_wave ? count : 0;
        all += count;
      }
    }
    total[i.value] = all, before[i.value] = earlier, tiles[i.value] = (all + height - 1) / height;
    sums[0][expert] = tiles[i.value];
  });
  Synchronize();
  u32 turn = 0;
#pragma clang loop unroll(disable)
  for (u32 distance = 1; distance < kMostExperts; distance *= 2, turn ^= 1) {
    Unroll<0, static_cast<int>(kOwn)>([&](auto i) __attribute__((always_inline)) {
      const u32 expert = i.value * kThreads + Thread();
      sums[turn ^ 1][expert] = sums[turn][expert] + (expert >= distance ? sums[turn][expert - distance] : 0);
    });
    Synchronize();
  }
  Unroll<0, static_cast<int>(kOwn)>([&](auto i) __attribute__((always_inline)) {
    const u32 expert = i.value * kThreads + Thread(), tile = sums[turn][expert] - tiles[i.value];
    next[expert] = tile * height + before[i.value];
    if (GroupX() == 0) {
      const u32 end = tile * height + total[i.value];
      for (u32 n = 0; n < tiles[i.value]; ++n) {
        const u32 bound = (tile + n + 1) * height;
        args.slots.tiles[tile + n] = {static_cast<int>(expert), bound < end ? bound : end};
      }
      for (u32 slot = end; slot < (tile + tiles[i.value]) * height; ++slot) args.slots.row[slot] = -1;
    }
  });
  if (GroupX() == 0 && Thread() == 0) args.slots.count[0] = sums[turn][kMostExperts - 1];
  Synchronize();
  const u32 end_wave = args.waves - first_wave < args.group_waves ? args.waves : first_wave + args.group_waves;
#pragma clang loop unroll(disable)
  for (u32 wave = first_wave; wave < end_wave; ++wave) {
    const u32 first = wave * args.wave_rows;
    const u32 end = args.rows - first < args.wave_rows ? args.rows : first + args.wave_rows;
    for (u32 pair = first * args.chosen + Thread(); pair < end * args.chosen; pair += kThreads) {
      const int expert = args.expert[pair];
      int slot = -1;
      if (expert >= 0) {
        slot = static_cast<int>(next[expert]) + args.rank[pair];
        args.slots.row[slot] = static_cast<int>(pair / args.chosen);
      }
      args.slot[pair] = slot;
    }
    Synchronize();
    Unroll<0, static_cast<int>(kOwn)>([&](auto i) __attribute__((always_inline)) {
      const u32 expert = i.value * kThreads + Thread();
      if (expert < args.experts) next[expert] += args.counts[static_cast<u64>(wave) * args.experts + expert];
    });
    Synchronize();
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_EXPERTS_ROUTE_H_
