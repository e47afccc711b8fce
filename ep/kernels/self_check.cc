#include "kernels/self_check.h"

#include <cmath>
#include <vector>

#include "kernels/check_problem.h"
#include "kernels/matmul.h"

namespace mxort {
namespace {

constexpr int64_t kM = 35, kN = 37, kK = 600;

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
  const CheckProblem problem(spec, kM);
  std::vector<float> y(static_cast<size_t>(kM * kN)), expected(y);
  const PackedWeights packed(spec, *kernel.layout, problem.weights(), SerialFor);
  const Kernels kernels = {&kernel};
  const MatMulOperand operand = {&packed, problem.weights(), problem.column_scale.data(), problem.bias.data()};
  MatMul({&spec, &kernels, operand, DataType::kFloat, kM, problem.a.data(), y.data(), {}}, SerialFor);
  problem.Expected({0, kM}, expected.data());
  return RelativeRms(y, expected) <= bound;
}

// The operator's promise; with an activation format only float sums differ.
bool Right(const Kernel& kernel, AccuracyLevel level, int rotation, ActivationFormat format) {
  const double bound = format == ActivationFormat::kNone ? PromisedError(level) : 1e-6;
  for (const WeightFormat weights : {WeightFormat::kMxfp4, WeightFormat::kMxfp8E4M3, WeightFormat::kMxint8}) {
    if (!kernel.layout->holds(weights)) continue;
    if (!Right(kernel, {kK, kN, rotation, format, level, weights}, bound)) return false;
  }
  return true;
}

}  // namespace

bool SelfCheck(const Kernel& kernel) {
  return Right(kernel, AccuracyLevel::kFp32, 1, ActivationFormat::kNone) &&
         Right(kernel, AccuracyLevel::kBf16, 1, ActivationFormat::kNone) &&
         Right(kernel, AccuracyLevel::kInt8, 1, ActivationFormat::kNone) &&
         Right(kernel, AccuracyLevel::kBf16, 32, ActivationFormat::kMxfp6E2M3);
}

}  // namespace mxort
