// Weight quantisation: float rows to packed codes and scales, bit-identical to mxort/scales.py, and what that loses.
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
  // Where there are any, each row is divided by the one of these that leaves it the least squared error, the first of
  // equal ones. A row that is not finite takes the first.
  const float* multipliers = nullptr;  // [multiplier_count]
  int multiplier_count = 0;
  float* column_scale = nullptr;  // [rows]
};

// Quantises the rows given on the best instruction set of this CPU; every variant gives the same codes and scales.
void QuantizeWeights(const QuantizeArgs& args, Range rows);
using QuantizeRange = void (*)(const QuantizeArgs&, Range rows);

struct RowSumsArgs {
  const float* w;  // [rows, k]
  int64_t k;
  WeightFormat format;
  const uint8_t* codes;       // [rows, blocks * BlockBytes]
  const uint8_t* scales;      // [rows, blocks]
  const float* column_scale;  // [rows]
  double* noise;              // [rows]: sum of (w - dequantised w)^2
  double* signal;             // [rows]: sum of w^2
};

// In double, in which no square of a float over- or underflows.
void SumRows(const RowSumsArgs& args, Range rows);
using SumRowsRange = void (*)(const RowSumsArgs&, Range rows);

}  // namespace mxort

#endif  // MXORT_KERNELS_QUANTIZE_H_
