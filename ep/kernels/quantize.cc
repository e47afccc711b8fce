#include "kernels/quantize.h"

#include "kernels/vector_functions.h"

namespace mxort {

void QuantizeWeights(const QuantizeArgs& args, Range rows) {
  static const QuantizeRange quantize = SelectFunctions(DetectCpu(), "").quantize;
  quantize(args, rows);
}

}  // namespace mxort
