// Weight quantisation: float rows to packed codes and scales, bit-identical to mxort/scales.py.
#ifndef MXORT_KERNELS_QUANTIZE_H_
#define MXORT_KERNELS_QUANTIZE_H_

#include "kernels/kernel.h"
#include "mx_formats.h"

namespace mxort {

struct QuantizeArgs {
  const float* w;  // [rows, k]
  int64_t k;
  WeightFormat format;
  ScaleRule rule;
  uint8_t* codes;   // [rows, blocks * BlockBytes]
  uint8_t* scales;  // [rows, blocks]
};

// Quantises the rows given on the best instruction set of this CPU; every variant gives the same bits.
void QuantizeWeights(const QuantizeArgs& args, Range rows);
using QuantizeRange = void (*)(const QuantizeArgs&, Range rows);

}  // namespace mxort

#endif  // MXORT_KERNELS_QUANTIZE_H_
