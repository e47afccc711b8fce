#include "device/self_check.h"

#include <algorithm>

#include "device/check_results.h"
#include "device/check_run.h"
#include "device/matmul_plan.h"
#include "kernels/check_problem.h"
#include "kernels/hip/layout.h"

namespace mxort::device {
namespace {

constexpr int64_t kCheckedRows = 16;

// Rows 0, 17, 34, ...: every row of a fragment and every fragment of a tile is among them.
int64_t CheckedRow(int64_t i, int64_t m) { return i * 17 % m; }

// Rows whose normalisation is exact: v = x + skip + bias is 2 or -2, as often either, so that its mean is 0 and its
// deviation 2; y = v / 2 * scale + shift.
struct NormedRows {
  std::vector<float> x, skip, bias, scale, shift, v, y;

  NormedRows(CheckRun& run, size_t rows, size_t k) : x(rows * k), skip(rows * k), v(rows * k), y(rows * k) {
    const auto some = [&](float unit, uint32_t below, float first) {
      return static_cast<float>(run.Whole(below)) * unit + first;
    };
    for (size_t i = 0; i < k; ++i) {
      bias.push_back(some(1, 2, -0.5f)), scale.push_back(some(0.25f, 8, 0.25f)), shift.push_back(some(0.5f, 5, -1));
    }
    for (size_t i = 0; i < x.size(); ++i) {
      v[i] = i % 2 == 0 ? some(4, 2, -2) : -v[i - 1];
      skip[i] = some(1, 3, -1);
      x[i] = v[i] - skip[i] - bias[i % k];
      y[i] = v[i] / 2 * scale[i % k] + shift[i % k];
    }
  }
};

// Launches the product on `a`, or normalised first, and compares.
Status Run(CheckRun& run, const CheckProblem& problem, const char* kernel, const NormedRows* normed,
           KernelCheck* check) {
  const HostWeights host = {problem.weights(), problem.column_scale.data(), problem.bias.data()};
  PlanOptions options;
  options.self_check = false;
  options.kernel = kernel;
  std::unique_ptr<MatMulPlan> plan;
  MXORT_RETURN_IF_ERROR(MatMulPlan::Create(run.arena(), problem.spec, run.type(), host, options, &plan));
  const auto count = static_cast<size_t>(problem.m * problem.spec.N);
  void* y = run.AllocateNumbers(count);
  if (normed) {
    hip::NormArgs norm{};
    norm.shape = {static_cast<unsigned long long>(problem.m), static_cast<unsigned>(problem.spec.K), 1};
    norm.x = run.SendNumbers(normed->x), norm.skip = run.SendNumbers(normed->skip);
    norm.bias = run.SendNumbers(normed->bias);
    norm.scale = run.SendNumbers(normed->scale), norm.shift = run.SendNumbers(normed->shift);
    norm.y = run.AllocateNumbers(normed->y.size()), norm.sum = run.AllocateNumbers(normed->v.size());
    norm.skip_rows = norm.shape.rows;
    norm.type = norm.scale_type = norm.out_type = run.device_type();
    run.Launch([&](void* stream) { return plan->LaunchNormalised(stream, norm, problem.m, y); });
    const double bound = check->bound;
    Compare(run.FetchNumbers(norm.y, normed->y.size()), {normed->y.begin(), normed->y.end()}, run.type(), 0, check);
    Compare(run.FetchNumbers(norm.sum, normed->v.size()), {normed->v.begin(), normed->v.end()}, run.type(), 0, check);
    check->bound = bound;
  } else {
    const void* a = run.SendNumbers(problem.a);
    run.Launch([&](void* stream) { return plan->Launch(stream, a, problem.m, y, run.arena()); });
  }
  const std::vector<float> got = run.FetchNumbers(y, count);
  std::vector<float> expected(count);
  Comparison comparison(run.type());
  const int64_t n = problem.spec.N;
  for (int64_t i = 0; i < std::min(kCheckedRows, problem.m); ++i) {
    const int64_t row = CheckedRow(i, problem.m);
    problem.Expected({row, row + 1}, expected.data());
    for (auto at = static_cast<size_t>(row * n); at < static_cast<size_t>((row + 1) * n); ++at) {
      comparison.Add(got[at], static_cast<double>(expected[at]));
    }
  }
  comparison.Judge(check);
  return run.status();
}

// The kernels always rotate in a check, except where a rotation would ask for more terms than this problem has.
bool Exact(const MatMulSpec& spec) {
  return spec.activation_format == ActivationFormat::kNone && spec.accuracy_level == AccuracyLevel::kFp32;
}
bool Rotated(const MatMulSpec& spec) { return !Exact(spec) || spec.rotation != 1; }

// Two problems: whole tiles with K split, and ragged ones in one piece with odd sizes. Of a kernel that prepares A
// itself a third, which it normalises.
Status Check(const std::shared_ptr<Device>& device, const hip::GemmRow& row, const MatMulSpec& spec, DataType type,
             KernelCheck* check) {
  constexpr int kSteps = 17, kNormedSteps = 4;
  check->bound = CheckBound(spec);
  const bool rotated = Rotated(spec);
  MatMulSpec whole = spec, ragged = spec, normed = spec;
  whole.K = kSteps * hip::kStepK, whole.N = row.columns, whole.rotation = rotated ? 128 : 1;
  ragged.K = 9 * hip::kStepK + 29, ragged.N = row.columns - 3, ragged.rotation = rotated ? 32 : 1;
  normed.K = kNormedSteps * hip::kStepK, normed.N = row.columns, normed.rotation = rotated ? 64 : 1;
  const auto terms = static_cast<unsigned>(check->terms);
  const int64_t rows = row.direct ? std::min<int64_t>(row.rows, hip::DirectRows(row.operand, kSteps, terms)) : row.rows;
  const int64_t fewer = std::max<int64_t>(1, rows - 5);
  for (const CheckProblem& problem : {CheckProblem(whole, rows, type), CheckProblem(ragged, fewer, type)}) {
    CheckRun run(device, type);
    MXORT_RETURN_IF_ERROR(Run(run, problem, row.name, nullptr, check));
  }
  if (!row.direct) return {};
  CheckProblem problem(normed, std::min<int64_t>(fewer, 3), type);
  CheckRun run(device, type);
  const NormedRows given(run, static_cast<size_t>(problem.m), static_cast<size_t>(normed.K));
  problem.a = given.y;
  return Run(run, problem, row.name, &given, check);
}

}  // namespace

Status CheckKernels(const std::shared_ptr<Device>& device, const MatMulSpec& spec, DataType type, bool check,
                    uint64_t* disabled) {
  *disabled = 0;
  size_t count = 0;
  const hip::GemmRow* rows = hip::GemmRows(&count);
  for (size_t i = 0; i < count; ++i) {
    const DeviceInfo& info = device->info();
    const hip::Plan plan = hip::Select({info.arch.c_str(), info.compute_units}, spec, type, 1, rows[i].name);
    if (!plan.gemm) continue;
    KernelCheck result;
    result.kernel = rows[i].name;
    result.preparation = plan.prepare.kernel;
    result.terms = plan.prepare.terms;
    result.type = type;
    bool passed = true;
    MXORT_RETURN_IF_ERROR(CheckOnce(
        device, result, 2 * Exact(spec) + Rotated(spec), check,
        [&](KernelCheck* made) { return Check(device, rows[i], spec, type, made); }, &passed));
    if (!passed) *disabled |= uint64_t{1} << i;
  }
  return {};
}

}  // namespace mxort::device
