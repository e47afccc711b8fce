#include "device/check_results.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "kernels/activation.h"
#include "kernels/check_problem.h"
#include "kernels/float16.h"

namespace mxort::device {
namespace {

// A single element may be so many times worse than the root mean square.
constexpr double kWorstElement = 8;

// What a check covers: device, kernel, preparation, type, variant.
using Key = std::tuple<int, std::string, std::string, DataType, int>;

struct Results {
  std::mutex checking;  // held while kernels run: no two threads check the same one
  std::mutex mutex;
  std::map<Key, bool> passed;
  std::vector<KernelCheck> checks;
};

Results& AllResults() {
  static auto& results = *new Results;  // devices may be released after static destructors have run
  return results;
}

bool Known(const Key& key, bool* passed) {
  Results& results = AllResults();
  const std::lock_guard<std::mutex> lock(results.mutex);
  const auto it = results.passed.find(key);
  if (it != results.passed.end()) *passed = it->second;
  return it != results.passed.end();
}

void Remember(const Key& key, const KernelCheck& check) {
  Results& results = AllResults();
  const std::lock_guard<std::mutex> lock(results.mutex);
  results.passed[key] = check.passed;
  results.checks.push_back(check);
}

}  // namespace

double CheckBound(const MatMulSpec& spec) {
  return spec.activation_format == ActivationFormat::kNone ? PromisedError(spec.accuracy_level) : kSumsBound;
}

const char* TypeName(DataType type) {
  return type == DataType::kFloat ? "float" : type == DataType::kFloat16 ? "float16" : "bfloat16";
}

double RoundingOf(DataType type) {
  return type == DataType::kFloat ? 0x1p-24 : type == DataType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

void Comparison::Add(float got, double right) {
  const double e = std::abs(static_cast<double>(got) - right);
  error_ += e * e;
  norm_ += right * right;
  const double beyond = e - RoundingOf(type_) * std::abs(right);
  worst_ = beyond > worst_ || std::isnan(beyond) ? beyond : worst_;
  ++count_;
}

void Comparison::Judge(KernelCheck* check) const {
  const double rms = std::sqrt(error_ / norm_), worst = worst_ / std::sqrt(norm_ / static_cast<double>(count_));
  // Not >, so that a NaN fails too.
  check->passed &= rms <= check->bound + RoundingOf(type_) && worst <= kWorstElement * check->bound;
  if (!(rms <= check->error)) check->error = rms;
}

std::vector<uint8_t> InType(DataType type, const std::vector<float>& x) {
  std::vector<uint8_t> bytes(x.size() * DataTypeBytes(type));
  for (size_t i = 0; i < x.size(); ++i) StoreAs(type, bytes.data(), static_cast<int64_t>(i), x[i]);
  return bytes;
}

std::vector<float> FromType(DataType type, const std::vector<uint8_t>& bytes) {
  std::vector<float> x(bytes.size() / DataTypeBytes(type));
  WidenRow(type, bytes.data(), static_cast<int64_t>(x.size()), static_cast<int64_t>(x.size()), x.data());
  return x;
}

Status CheckOnce(const std::shared_ptr<Device>& device, KernelCheck result, int variant, bool check,
                 const std::function<Status(KernelCheck*)>& run, bool* passed) {
  *passed = true;
  const Key key{device->ordinal(), result.kernel, result.preparation, result.type, variant};
  std::unique_lock<std::mutex> checking;
  if (check) checking = std::unique_lock<std::mutex>(AllResults().checking);
  if (Known(key, passed) || !check) return {};
  result.device = device->ordinal();
  result.passed = true;
  MXORT_RETURN_IF_ERROR(run(&result));
  result.bound += RoundingOf(result.type);
  Remember(key, result);
  *passed = result.passed;
  if (result.passed) return {};
  const std::string how = result.preparation.empty() ? "" : result.preparation + ", ";
  std::fprintf(stderr,
               "mxort: warning: kernel %s (%s%s) disagrees with the CPU on GPU %d (%s) and is not used: "
               "relative error %.1e, at most %.1e is right\n",
               result.kernel.c_str(), how.c_str(), TypeName(result.type), device->ordinal(),
               device->info().name.c_str(), result.error, result.bound);
  return {};
}

std::vector<KernelCheck> KernelChecks() {
  Results& results = AllResults();
  const std::lock_guard<std::mutex> lock(results.mutex);
  return results.checks;
}

}  // namespace mxort::device
