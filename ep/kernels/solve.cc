#include "kernels/solve.h"

#include "kernels/vector_functions.h"

namespace mxort {

void GptqPanel(const PanelArgs& args, Range rows) {
  static const PanelRange solve = SelectFunctions(DetectCpu(), "").gptq_panel;
  solve(args, rows);
}

void DescendPanel(const PanelArgs& args, Range rows) {
  static const PanelRange solve = SelectFunctions(DetectCpu(), "").descend_panel;
  solve(args, rows);
}

}  // namespace mxort
