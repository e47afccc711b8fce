#include "device/self_check.h"

#include <algorithm>

#include "device/check_results.h"
#include "device/matmul_plan.h"
#include "kernels/check_problem.h"
#include "kernels/float16.h"
#include "kernels/hip/layout.h"

namespace mxort::device {
namespace {

constexpr int64_t kCheckedRows = 16;

// Rows 0, 17, 34, ...: every row of a fragment and every fragment of a tile is among them.
int64_t CheckedRow(int64_t i, int64_t m) { return i * 17 % m; }

void Compare(const CheckProblem& problem, const std::vector<float>& y, Comparison* comparison) {
  std::vector<float> expected(y.size());
  const int64_t checked = std::min(kCheckedRows, problem.m), n = problem.spec.N;
  for (int64_t i = 0; i < checked; ++i) {
    const int64_t row = CheckedRow(i, problem.m);
    problem.Expected({row, row + 1}, expected.data());
    for (int64_t index = row * n; index < (row + 1) * n; ++index) {
      const auto at = static_cast<size_t>(index);
      comparison->Add(y[at], static_cast<double>(expected[at]));
    }
  }
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
  *y = FromType(type, bytes);
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
  check->bound = CheckBound(spec);
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
    Comparison comparison(type);
    Compare(problem, y, &comparison);
    comparison.Judge(check);
  }
  return {};
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
