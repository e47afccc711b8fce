#include "kernels/quantize.h"

#include "kernels/vector_functions.h"

namespace mxort {

void QuantizeWeights(const QuantizeArgs& args, Range rows) {
  static const QuantizeRange quantize = SelectFunctions(DetectCpu(), "").quantize;
  quantize(args, rows);
}

void SumRows(const RowSumsArgs& args, Range rows) {
  static const SumRowsRange sum = SelectFunctions(DetectCpu(), "").sum_rows;
  sum(args, rows);
}

}  // namespace mxort
