// Weight quantisation of float rows, compiled by each cpu_<isa>.cc for its instruction set (vectorised by the
// compiler).
#ifndef MXORT_KERNELS_QUANTIZE_ROWS_H_
#define MXORT_KERNELS_QUANTIZE_ROWS_H_

#include "kernels/activation.h"
#include "kernels/quantize.h"

namespace mxort {

// Sum of squared errors of the block at a scale, in units of that scale squared, added as the tree of mxort/scales.py.
template <class F>
MXORT_INLINE double SquaredError(const float* block, uint8_t scale) {
  const double inverse = static_cast<double>(InverseScale(scale));
  double error[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) {
    const double scaled = static_cast<double>(block[i]) * inverse;  // exact in double
    // The float may underflow where the double does not, but then both round to zero.
    const double difference = scaled - static_cast<double>(RoundToElement<F>(static_cast<float>(scaled)).value);
    error[i] = difference * difference;
  }
  for (int half = kBlockSize / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) error[i] += error[i + half];
  }
  return error[0];
}

template <class F>
MXORT_INLINE uint8_t ScaleMse(const float* block, unsigned absmax) {
  const uint8_t low = ScaleFloor<F>(absmax);
  const uint8_t high = static_cast<uint8_t>(low + 1);  // at most 253: floor of a finite float is at most 252
  return 4 * SquaredError<F>(block, high) < SquaredError<F>(block, low) ? high : low;
}

template <class F>
MXORT_INLINE uint8_t ChooseScale(const float* block, unsigned absmax, ScaleRule rule) {
  switch (rule) {
    case ScaleRule::kFloor:
      return ScaleFloor<F>(absmax);
    case ScaleRule::kEven:
      return ScaleEven<F>(absmax);
    case ScaleRule::kRceil:
      return ScaleRceil<F>(absmax);
    case ScaleRule::kMse:
      return ScaleMse<F>(block, absmax);
  }
  return 0;
}

template <class F>
MXORT_INLINE void QuantizeWeightBlock(const float* block, ScaleRule rule, uint8_t* codes, uint8_t* scale) {
  const unsigned absmax = BlockAbsmax(block);
  if (absmax >= kFloatExponent) {
    *scale = kScaleNaN;
    __builtin_memset(codes, 0, PackedBytes<F>());
    return;
  }
  *scale = ChooseScale<F>(block, absmax, rule);
  const float inverse = InverseScale(*scale);
  uint8_t code[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) code[i] = RoundToElement<F>(block[i] * inverse).code;
  PackBlock<F>(code, codes);
}

template <class F>
MXORT_INLINE void QuantizeRowsAs(const QuantizeArgs& args, Range rows) {
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
      QuantizeWeightBlock<F>(source, args.rule, args.codes + index * PackedBytes<F>(), args.scales + index);
    }
  }
}
MXORT_INLINE void QuantizeRows(const QuantizeArgs& args, Range rows) {
  WithElement(args.format, [&](auto element) { QuantizeRowsAs<decltype(element)>(args, rows); });
}

}  // namespace mxort

#endif  // MXORT_KERNELS_QUANTIZE_ROWS_H_
