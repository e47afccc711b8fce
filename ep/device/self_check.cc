#include "device/self_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>

#include "device/matmul_plan.h"
#include "kernels/activation.h"
#include "kernels/check_problem.h"
#include "kernels/float16.h"
#include "kernels/hip/layout.h"

namespace mxort::device {
namespace {

// Bound of the relative RMS error where A is quantised and only sums differ. Random signs leave about 1e-7; matrix
// units that cut sums off instead of rounding them lose up to 2^-23 in each of K / 32 additions, 1e-5 together. The
// least mistake in an operand, one step of an E4M3 element in every row, is 2e-3.
constexpr double kSumsBound = 3e-5;
// A single element may be so many times worse than the root mean square.
constexpr double kWorstElement = 8;
constexpr int64_t kCheckedRows = 16;

double Rounding(DataType type) {
  return type == DataType::kFloat ? 0x1p-24 : type == DataType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

const char* NameOf(DataType type) {
  return type == DataType::kFloat ? "float" : type == DataType::kFloat16 ? "float16" : "bfloat16";
}

struct Error {
  double rms;    // relative
  double worst;  // of an element, relative to the root mean square of all, without the rounding to Y's type
};

// Rows 0, 17, 34, ...: every row of a fragment and every fragment of a tile is among them.
int64_t CheckedRow(int64_t i, int64_t m) { return i * 17 % m; }

Error Compare(const CheckProblem& problem, DataType type, const std::vector<float>& y) {
  std::vector<float> expected(y.size());
  const int64_t checked = std::min(kCheckedRows, problem.m), n = problem.spec.N;
  double error = 0, norm = 0, worst = 0;
  for (int64_t i = 0; i < checked; ++i) {
    const int64_t row = CheckedRow(i, problem.m);
    problem.Expected({row, row + 1}, expected.data());
    for (int64_t index = row * n; index < (row + 1) * n; ++index) {
      const double right = static_cast<double>(expected[static_cast<size_t>(index)]);
      const double e = std::abs(static_cast<double>(y[static_cast<size_t>(index)]) - right);
      error += e * e;
      norm += right * right;
      const double beyond = e - Rounding(type) * std::abs(right);
      worst = beyond > worst || std::isnan(beyond) ? beyond : worst;
    }
  }
  const double count = static_cast<double>(checked * n);
  return {std::sqrt(error / norm), worst / std::sqrt(norm / count)};
}

std::vector<uint8_t> InType(DataType type, const std::vector<float>& x) {
  std::vector<uint8_t> bytes(x.size() * DataTypeBytes(type));
  for (size_t i = 0; i < x.size(); ++i) StoreAs(type, bytes.data(), static_cast<int64_t>(i), x[i]);
  return bytes;
}

// Y of the problem, computed on the device by one kernel and widened to float.
Status Run(const std::shared_ptr<Device>& device, const CheckProblem& problem, DataType type, const char* kernel,
           std::vector<float>* y) {
  const auto arena = Arena::Create(device);
  const HostWeights host = {problem.weights(), problem.column_scale.data(), problem.bias.data()};
  PlanOptions options;
  options.self_check = false;
  options.kernel = kernel;
  std::unique_ptr<MatMulPlan> plan;
  MXORT_RETURN_IF_ERROR(MatMulPlan::Create(arena, problem.spec, type, host, options, &plan));
  std::unique_ptr<Stream> stream;
  MXORT_RETURN_IF_ERROR(Stream::Create(device, &stream));
  const std::vector<uint8_t> a = InType(type, problem.a);
  std::vector<uint8_t> bytes(static_cast<size_t>(problem.m * problem.spec.N) * DataTypeBytes(type));
  Buffer a_device, y_device;
  MXORT_RETURN_IF_ERROR(a_device.Allocate(arena, a.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(y_device.Allocate(arena, bytes.size(), stream->handle()));
  const int ordinal = device->ordinal();
  MXORT_RETURN_IF_ERROR(Copy(ordinal, a_device.data(), kHost, a.data(), a.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(plan->Launch(stream->handle(), a_device.data(), problem.m, y_device.data(), arena));
  MXORT_RETURN_IF_ERROR(Copy(kHost, bytes.data(), ordinal, y_device.data(), bytes.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(stream->Synchronize());
  y->resize(static_cast<size_t>(problem.m * problem.spec.N));
  WidenRow(type, bytes.data(), static_cast<int64_t>(y->size()), static_cast<int64_t>(y->size()), y->data());
  return {};
}

// The kernels always rotate in a check, except where a rotation would ask for more terms than this problem has.
bool Exact(const MatMulSpec& spec) {
  return spec.activation_format == ActivationFormat::kNone && spec.accuracy_level == AccuracyLevel::kFp32;
}
bool Rotated(const MatMulSpec& spec) { return !Exact(spec) || spec.rotation != 1; }

// Two problems: whole tiles with K split, and ragged ones in one piece with odd sizes.
Status Check(const std::shared_ptr<Device>& device, const hip::GemmRow& row, const MatMulSpec& spec, DataType type,
             KernelCheck* check) {
  constexpr int kSteps = 17;
  check->bound = spec.activation_format == ActivationFormat::kNone ? PromisedError(spec.accuracy_level) : kSumsBound;
  check->passed = true;
  const bool rotated = Rotated(spec);
  MatMulSpec whole = spec, ragged = spec;
  whole.K = kSteps * hip::kStepK, whole.N = row.columns, whole.rotation = rotated ? 128 : 1;
  ragged.K = 9 * hip::kStepK + 29, ragged.N = row.columns - 3, ragged.rotation = rotated ? 32 : 1;
  const auto terms = static_cast<unsigned>(check->terms);
  const int64_t rows = row.direct ? std::min<int64_t>(row.rows, hip::DirectRows(row.operand, kSteps, terms)) : row.rows;
  const int64_t fewer = std::max<int64_t>(1, rows - 5);
  for (const CheckProblem& problem : {CheckProblem(whole, rows, type), CheckProblem(ragged, fewer, type)}) {
    std::vector<float> y;
    MXORT_RETURN_IF_ERROR(Run(device, problem, type, row.name, &y));
    const Error error = Compare(problem, type, y);
    // Not >, so that a NaN fails too.
    check->passed &= error.rms <= check->bound + Rounding(type) && error.worst <= kWorstElement * check->bound;
    if (!(error.rms <= check->error)) check->error = error.rms;
  }
  check->bound += Rounding(type);
  return {};
}

// What a check covers: device, row, preparation, type; and, for exact products, whether with rotation.
using Key = std::tuple<int, size_t, std::string, DataType, bool, bool>;

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

Status CheckKernels(const std::shared_ptr<Device>& device, const MatMulSpec& spec, DataType type, bool check,
                    uint64_t* disabled) {
  *disabled = 0;
  std::unique_lock<std::mutex> checking;
  if (check) checking = std::unique_lock<std::mutex>(AllResults().checking);
  size_t count = 0;
  const hip::GemmRow* rows = hip::GemmRows(&count);
  for (size_t i = 0; i < count; ++i) {
    const DeviceInfo& info = device->info();
    const hip::Plan plan = hip::Select({info.arch.c_str(), info.compute_units}, spec, type, 1, rows[i].name);
    if (!plan.gemm) continue;
    const Key key{device->ordinal(), i, plan.prepare.kernel, type, Exact(spec), Rotated(spec)};
    bool passed = true;
    if (!Known(key, &passed) && check) {
      KernelCheck result;
      result.device = device->ordinal();
      result.kernel = rows[i].name;
      result.preparation = plan.prepare.kernel;
      result.terms = plan.prepare.terms;
      result.type = type;
      MXORT_RETURN_IF_ERROR(Check(device, rows[i], spec, type, &result));
      Remember(key, result);
      passed = result.passed;
      if (!passed) {
        std::fprintf(stderr,
                     "mxort: warning: kernel %s (%s, %s) disagrees with the CPU on GPU %d (%s) and is not used: "
                     "relative error %.1e, at most %.1e is right\n",
                     rows[i].name, plan.prepare.kernel, NameOf(type), device->ordinal(), info.name.c_str(),
                     result.error, result.bound);
      }
    }
    if (!passed) *disabled |= uint64_t{1} << i;
  }
  return {};
}

std::vector<KernelCheck> KernelChecks() {
  Results& results = AllResults();
  const std::lock_guard<std::mutex> lock(results.mutex);
  return results.checks;
}

}  // namespace mxort::device
