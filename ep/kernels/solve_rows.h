// The panels of solve.h, compiled by each cpu_<isa>.cc for its instruction set (vectorised by the compiler).
#ifndef MXORT_KERNELS_SOLVE_ROWS_H_
#define MXORT_KERNELS_SOLVE_ROWS_H_

#include "kernels/solve.h"

namespace mxort {

// Rows worked on at once: with all inputs of a panel they fit the first-level cache.
inline constexpr int kSolveRows = 32;

// rest[r] -= factor * moves[r]
MXORT_INLINE void Subtract(float factor, const float* moves, float* rest) {
  for (int r = 0; r < kSolveRows; ++r) rest[r] -= factor * moves[r];
}

struct GptqStep {
  template <class F>
  MXORT_INLINE void Move(float diagonal, const float* scale, const float* panel, float* values, float* moves) {
    for (int r = 0; r < kSolveRows; ++r) {
      values[r] = RoundToElement<F>(panel[r] / scale[r]).value;
      moves[r] = (panel[r] - values[r] * scale[r]) / diagonal;
    }
  }
  static constexpr bool kLaterOnly = true;
};

struct DescendStep {
  template <class F>
  MXORT_INLINE void Move(float diagonal, const float* scale, const float* panel, float* values, float* moves) {
    for (int r = 0; r < kSolveRows; ++r) {
      const float old = values[r] * scale[r];
      values[r] = RoundToElement<F>((old + panel[r] / diagonal) / scale[r]).value;
      moves[r] = values[r] * scale[r] - old;
    }
  }
  static constexpr bool kLaterOnly = false;
};

// kSolveRows rows from `row` on, of which `count` exist: copied to arrays of their own, where a step is a loop of fixed
// length. The others are zeros with a scale of one.
template <class Step, class F>
MXORT_INLINE void SolveTile(const PanelArgs& args, int64_t row, int64_t count) {
  alignas(64) float panel[kMostPanelInputs][kSolveRows];
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  for (int64_t i = 0; i < args.inputs; ++i) {
    if (count < kSolveRows) __builtin_memset(panel[i], 0, sizeof panel[i]);
    __builtin_memcpy(panel[i], args.panel + i * args.rows + row, bytes);
  }
  for (int64_t i = 0; i < args.inputs; ++i) {
    alignas(64) float scale[kSolveRows], values[kSolveRows] = {}, moves[kSolveRows];
    for (int r = 0; r < kSolveRows; ++r) scale[r] = 1.0f;
    const int64_t at = i * args.rows + row;
    __builtin_memcpy(scale, args.scale + at, bytes);
    __builtin_memcpy(values, args.values + at, bytes);
    const float* factors = args.matrix + i * args.inputs;
    Step::template Move<F>(factors[i], scale, panel[i], values, moves);
    for (int64_t j = Step::kLaterOnly ? i + 1 : 0; j < args.inputs; ++j) Subtract(factors[j], moves, panel[j]);
    __builtin_memcpy(args.values + at, values, bytes);
    __builtin_memcpy(args.moves + at, moves, bytes);
  }
  for (int64_t i = 0; i < args.inputs; ++i) __builtin_memcpy(args.panel + i * args.rows + row, panel[i], bytes);
}

template <class Step>
MXORT_INLINE void SolvePanel(const PanelArgs& args, Range rows) {
  WithElement(args.format, [&](auto element) {
    for (int64_t row = rows.begin; row < rows.end; row += kSolveRows) {
      const int64_t left = rows.end - row;
      SolveTile<Step, decltype(element)>(args, row, left < kSolveRows ? left : kSolveRows);
    }
  });
}

}  // namespace mxort

#endif  // MXORT_KERNELS_SOLVE_ROWS_H_
