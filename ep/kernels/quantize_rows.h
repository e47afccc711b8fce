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

// The same in float, a quarter of the work. A difference is exact, as a value and what it rounds to are multiples of
// the value's last bit: what errs are one square and five additions of positive numbers, together less than 6 * 2^-24
// of the sum. That holds for sums above kFloatErrorFloor: below, squares or scaled values may have been subnormal.
inline constexpr float kFloatErrorFloor = 0x1p-80f, kFloatErrorBound = 0x1p-21f;
template <class F>
MXORT_INLINE float SquaredErrorInFloat(const float* block, uint8_t scale) {
  const float inverse = InverseScale(scale);
  float error[kBlockSize];
  for (int i = 0; i < kBlockSize; ++i) {
    const float scaled = block[i] * inverse;
    const float difference = scaled - RoundToElement<F>(scaled).value;
    error[i] = difference * difference;
  }
  for (int half = kBlockSize / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) error[i] += error[i + half];
  }
  return error[0];
}

// A block's scale, and its squared error in units of the scale squared (in float).
struct ScaleChoice {
  uint8_t scale;
  float error;
};

// Decided in float where that is certain, else in double: the choice is that of double.
template <class F>
MXORT_INLINE ScaleChoice ScaleMse(const float* block, unsigned absmax) {
  const uint8_t low = ScaleFloor<F>(absmax);
  const uint8_t high = static_cast<uint8_t>(low + 1);  // at most 253: floor of a finite float is at most 252
  const float low_error = SquaredErrorInFloat<F>(block, low);
  const float high_error = SquaredErrorInFloat<F>(block, high);
  const float difference = 4 * high_error - low_error;
  const float doubt = 2 * kFloatErrorBound * (4 * high_error + low_error);
  bool higher = difference < 0;
  if (low_error < kFloatErrorFloor || high_error < kFloatErrorFloor || (difference <= doubt && -difference <= doubt)) {
    higher = 4 * SquaredError<F>(block, high) < SquaredError<F>(block, low);
  }
  return higher ? ScaleChoice{high, high_error} : ScaleChoice{low, low_error};
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
      break;
  }
  return ScaleMse<F>(block, absmax).scale;
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

// Block `index` of a row of k values, zeros behind its end.
MXORT_INLINE void LoadBlock(const float* row, int64_t k, int64_t index, float* block) {
  const int64_t left = k - index * kBlockSize;
  const float* source = row + index * kBlockSize;
  if (left >= kBlockSize) {
    __builtin_memcpy(block, source, kBlockSize * sizeof(float));
  } else {
    for (int64_t i = 0; i < kBlockSize; ++i) block[i] = i < left ? source[i] : 0.0f;
  }
}

// A number of E8M0 squared.
MXORT_INLINE double ScaleSquared(uint8_t scale) {
  const double value = static_cast<double>(DecodeScale(scale));
  return value * value;
}

// Sum of squared errors of a row at a multiplier; NaN where the row is not finite.
template <class F>
MXORT_INLINE double RowError(const QuantizeArgs& args, const float* row, float multiplier) {
  double total = 0;
  for (int64_t index = 0; index * kBlockSize < args.k; ++index) {
    float block[kBlockSize];
    LoadBlock(row, args.k, index, block);
    for (int i = 0; i < kBlockSize; ++i) block[i] /= multiplier;
    const unsigned absmax = BlockAbsmax(block);
    if (absmax >= kFloatExponent) return static_cast<double>(BitsFloat(kFloatNaN));
    ScaleChoice choice;
    if (args.rule == ScaleRule::kMse) {
      choice = ScaleMse<F>(block, absmax);
    } else {
      choice.scale = ChooseScale<F>(block, absmax, args.rule);
      choice.error = SquaredErrorInFloat<F>(block, choice.scale);
    }
    total += static_cast<double>(choice.error) * ScaleSquared(choice.scale);
  }
  return total * static_cast<double>(multiplier) * static_cast<double>(multiplier);
}

template <class F>
MXORT_INLINE float BestMultiplier(const QuantizeArgs& args, const float* row) {
  float best = args.multipliers[0];
  if (args.multiplier_count == 1) return best;
  double least = RowError<F>(args, row, best);
  for (int i = 1; i < args.multiplier_count; ++i) {
    const double error = RowError<F>(args, row, args.multipliers[i]);
    if (error < least) {
      least = error;
      best = args.multipliers[i];
    }
  }
  return best;
}

template <class F>
MXORT_INLINE void QuantizeRowsAs(const QuantizeArgs& args, Range rows) {
  const int64_t blocks = (args.k + kBlockSize - 1) / kBlockSize;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float* w = args.w + row * args.k;
    const bool divided = args.multiplier_count > 0;
    const float multiplier = divided ? BestMultiplier<F>(args, w) : 1.0f;
    if (divided) args.column_scale[row] = multiplier;
    for (int64_t index = 0; index < blocks; ++index) {
      float block[kBlockSize];
      LoadBlock(w, args.k, index, block);
      if (divided) {
        for (int i = 0; i < kBlockSize; ++i) block[i] /= multiplier;
      }
      const int64_t at = row * blocks + index;
      QuantizeWeightBlock<F>(block, args.rule, args.codes + at * PackedBytes<F>(), args.scales + at);
    }
  }
}
MXORT_INLINE void QuantizeRows(const QuantizeArgs& args, Range rows) {
  WithElement(args.format, [&](auto element) { QuantizeRowsAs<decltype(element)>(args, rows); });
}

template <class F>
MXORT_INLINE void SumRowsAs(const RowSumsArgs& args, Range rows) {
  const int64_t blocks = (args.k + kBlockSize - 1) / kBlockSize;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const double multiplier = static_cast<double>(args.column_scale[row]);
    double noise[kBlockSize] = {}, signal[kBlockSize] = {};
    for (int64_t index = 0; index < blocks; ++index) {
      const int64_t at = row * blocks + index;
      float block[kBlockSize], values[kBlockSize];
      uint8_t codes[kBlockSize];
      LoadBlock(args.w + row * args.k, args.k, index, block);
      UnpackBlock<F>(args.codes + at * PackedBytes<F>(), codes);
      for (int i = 0; i < kBlockSize; ++i) values[i] = DecodeElement<F>(codes[i]);
      const double scale = static_cast<double>(DecodeScale(args.scales[at])) * multiplier;
      for (int i = 0; i < kBlockSize; ++i) {
        const double w = static_cast<double>(block[i]);
        const double error = w - static_cast<double>(values[i]) * scale;
        noise[i] += error * error;
        signal[i] += w * w;
      }
    }
    for (int half = kBlockSize / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) {
        noise[i] += noise[i + half];
        signal[i] += signal[i + half];
      }
    }
    args.noise[row] = noise[0];
    args.signal[row] = signal[0];
  }
}
MXORT_INLINE void SumRowsOf(const RowSumsArgs& args, Range rows) {
  WithElement(args.format, [&](auto element) { SumRowsAs<decltype(element)>(args, rows); });
}

}  // namespace mxort

#endif  // MXORT_KERNELS_QUANTIZE_ROWS_H_
