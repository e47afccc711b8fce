#include "kernels/self_check.h"

#include <cmath>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kernels/matmul.h"

namespace mxort {
namespace {

constexpr int64_t kM = 35, kN = 37, kK = 600;

// Numbers that look random, the same everywhere (a linear congruential generator, Numerical Recipes' constants).
class Sequence {
 public:
  uint32_t Next() { return (state_ = state_ * 1664525u + 1013904223u) >> 8; }

 private:
  uint32_t state_ = 1;
};

double RelativeRms(const std::vector<float>& y, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const double e = static_cast<double>(y[i]) - static_cast<double>(expected[i]);
    error += e * e;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return std::sqrt(error / norm);  // NaN where y has one, which compares as too large below
}

bool Right(const Kernel& kernel, const MatMulSpec& spec, double bound) {
  if (!kernel.supports(spec)) return true;
  Sequence sequence;
  const int64_t blocks = BlocksOf(kK);
  std::vector<uint8_t> codes(static_cast<size_t>(kN * blocks * kPackedBlockBytes)),
      scales(static_cast<size_t>(kN * blocks));
  std::vector<float> a(static_cast<size_t>(kM * kK)), ones(kN, 1.0f), y(static_cast<size_t>(kM * kN)), expected(y);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(sequence.Next());
  for (uint8_t& scale : scales) scale = static_cast<uint8_t>(kScaleBias - 4 + sequence.Next() % 8);
  for (float& x : a) x = static_cast<float>(sequence.Next() % 2001) / 1000.0f - 1.0f;
  const Weights weights = {codes.data(), scales.data()};
  const PackedWeights packed(spec, *kernel.layout, weights, SerialFor);
  const Kernels kernels = {&kernel};
  MatMul({&spec, &kernels, &packed, weights, ones.data(), ones.data(), DataType::kFloat, kM, a.data(), y.data()},
         SerialFor);
  ReferenceMatMul(spec, DataType::kFloat, a.data(), weights, ones.data(), ones.data(), {0, kM}, expected.data());
  return RelativeRms(y, expected) <= bound;
}

}  // namespace

bool SelfCheck(const Kernel& kernel) {
  // The bounds are the operator's promises (docs/format.md); with an activation format only float sums differ.
  return Right(kernel, {kK, kN, 1, ActivationFormat::kNone, AccuracyLevel::kFp32}, 1e-6) &&
         Right(kernel, {kK, kN, 1, ActivationFormat::kNone, AccuracyLevel::kBf16}, 3e-3) &&
         Right(kernel, {kK, kN, 1, ActivationFormat::kNone, AccuracyLevel::kInt8}, 1e-2) &&
         Right(kernel, {kK, kN, 32, ActivationFormat::kMxfp6E2M3, AccuracyLevel::kBf16}, 1e-6);
}

}  // namespace mxort
