// Arguments of the kernels of a mixture of experts (experts*.hip). No headers but args.h.
//
// Routing hands every chosen (row, expert) a *slot*: a row of what lies between the two products. The slots of an
// expert fill tiles of `height` rows; the last one of an expert has empty slots.
//
//   few rows (at most kFewRows):  a tile is an active expert, slot = tile * kFewRows + row: each has room for every row
//   many:                         tiles of 64, 128 or 256 slots, an expert's rows in their order
#ifndef MXORT_KERNELS_HIP_ARGS_EXPERTS_H_
#define MXORT_KERNELS_HIP_ARGS_EXPERTS_H_

#include "kernels/hip/args.h"

namespace mxort::hip {

inline constexpr int kFewRows = 16;
inline constexpr int kMostExperts = 512;
inline constexpr int kExpertsThreads = 256;  // of every kernel but the down kernel of few rows
inline constexpr int kDownThreads = 1024;

struct ExpertTile {
  int expert;
  unsigned end;  // of its slots that hold a row
};

// Where the slots are. What lies behind `count` tiles was never written.
struct Slots {
  unsigned* count;  // of tiles; behind it, of few rows, a bit of each row that is NaN
  ExpertTile* tiles;
  int* row;         // of X, by slot; -1: empty
  float* weight;    // by slot, of few rows alone
  unsigned height;  // of a tile
};

struct RouterLogits {
  const void* logits;  // T [rows, experts]
  unsigned rows, experts, chosen;
  int normalize;
  int type;  // Type of T
};

// Few rows. Grid x: steps of X's records, and one more that routes.
struct RoutePrepareArgs {
  PrepareArgs prepare;
  RouterLogits router;
  Slots slots;
};

// Many rows, first: the choices of each row by rising expert. A wave has `wave_rows` rows, and counts.
struct RouteArgs {
  RouterLogits router;
  int* expert;       // [rows, chosen]; -1: the row is NaN
  int* rank;         // [rows, chosen]: how many rows of the same wave chose the expert before
  float* weight;     // [rows, chosen]
  unsigned* counts;  // [waves, experts]
  unsigned wave_rows;
  unsigned waves;
};

// Second: slots. A workgroup has `group_waves` waves of the first.
struct ArrangeArgs {
  const int* expert;
  const int* rank;
  const unsigned* counts;
  int* slot;  // [rows, chosen]; -1: the row is NaN
  Slots slots;
  unsigned rows, experts, chosen, wave_rows, waves, group_waves;
};

// Records of the rows that slots name. Grid x: steps, grid y: panels of the slots.
struct GatherArgs {
  PrepareArgs prepare;
  Slots slots;
};

enum class Gates : int { kNone, kInterleaved, kHalves };  // the numbers of mxort::Gating

// Records of f(P) or f(gate) * (up + beta), by slot. Grid as above; of few rows a wave has a panel.
struct InnerArgs {
  const float* p;  // [slots, inner], or [slots, 2 * inner]
  void* records;
  Slots slots;
  unsigned inner, steps, terms;
  int rotation;
  int gates;       // Gates
  int activation;  // Follow
  float alpha, beta, limit;
};

// A product of every tile with its expert's weights: `gemm` as of the first expert.
//   many rows           a: records by slot, m: all slots; grid x: most tiles * tiles_n
//   few rows, first     a: one panel, of all rows (m), y: by slot; grid x: panels of columns, grid y: tiles
//   few rows, second    a: records of a panel a tile, m: rows of Y, the weighted sum over the tiles. A workgroup has
//   one
//                       fragment of a panel of columns; grid x: 4 * panels, rounded up to 32
struct ExpertsGemmArgs {
  GemmArgs gemm;
  Slots slots;
};

// Many rows: Y[row] = sum over i of weight[row, i] * y[slot[row, i]]. Grid x: 1024 columns, grid y: rows.
struct CombineArgs {
  const float* y;  // [slots, n]
  const int* slot;
  const float* weight;
  void* out;  // T [rows, n]
  unsigned rows, n, chosen;
  unsigned grid_rows;  // grid y
  int type;            // Type of T
};

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ARGS_EXPERTS_H_
