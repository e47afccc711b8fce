// Weight quantisation of float rows, compiled by each cpu_<isa>.cc for its instruction set (vectorised by the
// compiler).
#ifndef MXORT_KERNELS_QUANTIZE_ROWS_H_
#define MXORT_KERNELS_QUANTIZE_ROWS_H_

#include "kernels/activation.h"
#include "kernels/quantize.h"

namespace mxort {

// Sum of squared errors of the block at a scale, in units of that scale squared, added as the tree of mxort/scales.py.
MXORT_INLINE double SquaredError(const float* block, uint8_t scale) {
  const double inverse = static_cast<double>(InverseScale(scale));
  double error[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) {
    const double scaled = static_cast<double>(block[i]) * inverse;  // exact in double
    // The float may underflow where the double does not, but then both round to zero.
    const double difference = scaled - static_cast<double>(RoundToElement<E2M1>(static_cast<float>(scaled)).value);
    error[i] = difference * difference;
  }
  for (int half = kBlockSize / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) error[i] += error[i + half];
  }
  return error[0];
}

MXORT_INLINE uint8_t ScaleMse(const float* block, unsigned absmax) {
  const uint8_t low = ScaleFloor<E2M1>(absmax);
  const uint8_t high = static_cast<uint8_t>(low + 1);  // at most 253: floor of a finite float is at most 252
  return 4 * SquaredError(block, high) < SquaredError(block, low) ? high : low;
}

MXORT_INLINE uint8_t ChooseScale(const float* block, unsigned absmax, ScaleRule rule) {
  switch (rule) {
    case ScaleRule::kFloor:
      return ScaleFloor<E2M1>(absmax);
    case ScaleRule::kEven:
      return ScaleEven<E2M1>(absmax);
    case ScaleRule::kRceil:
      return ScaleRceil<E2M1>(absmax);
    case ScaleRule::kMse:
      return ScaleMse(block, absmax);
  }
  return 0;
}

MXORT_INLINE void QuantizeWeightBlock(const float* block, ScaleRule rule, uint8_t* codes, uint8_t* scale) {
  const unsigned absmax = BlockAbsmax(block);
  if (absmax >= kFloatExponent) {
    *scale = kScaleNaN;
    __builtin_memset(codes, 0, kPackedBlockBytes);
    return;
  }
  *scale = ChooseScale(block, absmax, rule);
  const float inverse = InverseScale(*scale);
  uint8_t code[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) code[i] = RoundToElement<E2M1>(block[i] * inverse).code;
  for (int i = 0; i < kPackedBlockBytes; ++i) codes[i] = static_cast<uint8_t>(code[2 * i] | (code[2 * i + 1] << 4));
}

MXORT_INLINE void QuantizeRows(const QuantizeArgs& args, Range rows) {
  const int64_t blocks = (args.k + kBlockSize - 1) / kBlockSize;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const float* source = args.w + row * args.k + block * kBlockSize;
      const int64_t left = args.k - block * kBlockSize;
      float tail[kBlockSize] = {};
      if (left < kBlockSize) {
        __builtin_memcpy(tail, source, static_cast<size_t>(left) * sizeof(float));
        source = tail;
      }
      const int64_t index = row * blocks + block;
      QuantizeWeightBlock(source, args.rule, args.codes + index * kPackedBlockBytes, args.scales + index);
    }
  }
}

}  // namespace mxort

#endif  // MXORT_KERNELS_QUANTIZE_ROWS_H_
