// Calibrated rounding inside a panel of inputs: the steps that follow one another. What a panel does to the rest of the
// matrix is a matrix product, and the caller's (mxort/quantize/solver.py, which has the algorithms).
#ifndef MXORT_KERNELS_SOLVE_H_
#define MXORT_KERNELS_SOLVE_H_

#include "kernels/kernel.h"

namespace mxort {

inline constexpr int64_t kMostPanelInputs = 128;

// `inputs` inputs of `rows` rows of weights, transposed: input i of row r is at [i * rows + r]. Rows do not depend on
// each other. No operation is fused with another, so that every instruction set gives the same bits.
struct PanelArgs {
  WeightFormat format;
  int64_t inputs;  // at most kMostPanelInputs
  int64_t rows;
  const float* matrix;  // [inputs, inputs]
  const float* scale;   // [inputs, rows]: what values are multiplied with
  float* panel;         // [inputs, rows]
  float* values;        // [inputs, rows]: numbers of the format
  float* moves;         // [inputs, rows]
};

// GPTQ. `matrix` is U of these inputs, `panel` what is wanted of them (and is used up). Each input i in turn is
// rounded,
//   values[i] = round(panel[i] / scale[i]),  moves[i] = (panel[i] - values[i] scale[i]) / U[i][i],
// and for each later input j, panel[j] -= U[i][j] moves[i].
void GptqPanel(const PanelArgs& args, Range rows);

// Coordinate descent. `matrix` is H of these inputs, `panel` the gradient H (wanted - values scale), kept up to date
// here. Each input i in turn becomes the best with all others held,
//   values[i] = round((old + panel[i] / H[i][i]) / scale[i]) with old = values[i] scale[i],
// and moves[i] = values[i] scale[i] - old; then for every j, panel[j] -= H[i][j] moves[i].
void DescendPanel(const PanelArgs& args, Range rows);

using PanelRange = void (*)(const PanelArgs&, Range rows);

}  // namespace mxort

#endif  // MXORT_KERNELS_SOLVE_H_
