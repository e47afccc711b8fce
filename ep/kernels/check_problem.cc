#include "kernels/check_problem.h"

#include "kernels/cpu_kernels.h"
#include "kernels/float16.h"

namespace mxort {
namespace {

// A linear congruential generator with the constants of Numerical Recipes.
class Sequence {
 public:
  uint32_t Next() { return (state_ = state_ * 1664525u + 1013904223u) >> 8; }
  // In [-1, 1), all bits of a float in use.
  float Number() { return static_cast<float>(Next()) / 8388608.0f - 1.0f; }

 private:
  uint32_t state_ = 1;
};

float Rounded(DataType type, float x) {
  if (type == DataType::kFloat) return x;
  return type == DataType::kFloat16 ? Float16ToFloat(FloatToFloat16(x)) : BFloat16ToFloat(FloatToBFloat16(x));
}

}  // namespace

CheckProblem::CheckProblem(const MatMulSpec& s, int64_t rows, DataType type)
    : spec(s),
      m(rows),
      codes(static_cast<size_t>(s.N * BlocksOf(s.K) * BlockBytes(s.weight_format))),
      scales(static_cast<size_t>(s.N * BlocksOf(s.K))),
      a(static_cast<size_t>(rows * s.K)),
      column_scale(static_cast<size_t>(s.N)),
      bias(column_scale.size()) {
  Sequence sequence;
  // Of whole bytes without a bit that E4M3's NaN has.
  const uint8_t bits = BlockBytes(s.weight_format) == kBlockSize ? 0xBF : 0xFF;
  for (uint8_t& code : codes) code = static_cast<uint8_t>(sequence.Next()) & bits;
  for (uint8_t& scale : scales) scale = static_cast<uint8_t>(kScaleBias - 4 + sequence.Next() % 8);
  for (float& x : a) x = Rounded(type, sequence.Number());
  for (float& x : column_scale) x = 1.5f + sequence.Number() / 2;
  for (float& x : bias) x = sequence.Number();
}

void CheckProblem::Expected(Range rows, float* y) const {
  ReferenceMatMul(spec, DataType::kFloat, a.data(), weights(), column_scale.data(), bias.data(), rows, DataType::kFloat,
                  y + rows.begin * spec.N);
}

double PromisedError(AccuracyLevel level) {
  return level == AccuracyLevel::kFp32 ? 1e-6 : level == AccuracyLevel::kBf16 ? 3e-3 : 1e-2;
}

}  // namespace mxort
