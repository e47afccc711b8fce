// Self-checks of rows.hip.
#include "device/rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "device/tensor_check_table.h"

namespace mxort::device {
namespace {

constexpr size_t kOuter = 3, kInner = 2, kCount = kOuter * kInner;  // rows

hip::RowShape ShapeOf(int n) { return {kCount, static_cast<unsigned>(n), kInner}; }

// Element k of row r.
size_t At(size_t row, size_t k, int n) { return (row / kInner * static_cast<size_t>(n) + k) * kInner + row % kInner; }

double Reduced(hip::Reduction reduction, const std::vector<double>& x) {
  const auto sum = [&](const auto& f) {
    return std::accumulate(x.begin(), x.end(), 0.0, [&](double y, double value) { return y + f(value); });
  };
  switch (reduction) {
    case hip::Reduction::kSum:
      return sum([](double v) { return v; });
    case hip::Reduction::kMean:
      return sum([](double v) { return v; }) / static_cast<double>(x.size());
    case hip::Reduction::kMax:
      return *std::max_element(x.begin(), x.end());
    case hip::Reduction::kMin:
      return *std::min_element(x.begin(), x.end());
    case hip::Reduction::kProd:
      return std::accumulate(x.begin(), x.end(), 1.0, [](double y, double value) { return y * value; });
    case hip::Reduction::kL1:
      return sum([](double v) { return std::abs(v); });
    case hip::Reduction::kL2:
      return std::sqrt(sum([](double v) { return v * v; }));
    case hip::Reduction::kSumSquare:
      return sum([](double v) { return v * v; });
    case hip::Reduction::kLogSum:
      return std::log(sum([](double v) { return v; }));
    case hip::Reduction::kLogSumExp:
      return std::log(sum([](double v) { return std::exp(v); }));
  }
  return 0;
}

std::vector<double> RowOf(const std::vector<float>& x, size_t row, int n) {
  std::vector<double> values;
  for (size_t k = 0; k < static_cast<size_t>(n); ++k) values.push_back(static_cast<double>(x[At(row, k, n)]));
  return values;
}

}  // namespace

Status CheckSoftmax(CheckRun& run, int n, KernelCheck* check) {
  RowKernel kernel;
  MXORT_RETURN_IF_ERROR(RowKernel::Load(run.device(), "softmax", &kernel));
  const std::vector<float> x = run.Numbers(kCount * static_cast<size_t>(n), 3);
  hip::SoftmaxArgs args{};
  args.shape = ShapeOf(n);
  args.x = run.SendNumbers(x);
  args.type = run.device_type();
  for (args.log = 0; args.log < 2; ++args.log) {
    std::vector<double> right(x.size());
    for (size_t row = 0; row < kCount; ++row) {
      const double total = Reduced(hip::Reduction::kLogSumExp, RowOf(x, row, n));
      for (size_t k = 0; k < static_cast<size_t>(n); ++k) {
        const double y = static_cast<double>(x[At(row, k, n)]) - total;
        right[At(row, k, n)] = args.log ? y : std::exp(y);
      }
    }
    args.y = run.AllocateNumbers(x.size());
    run.Launch([&](void* stream) { return kernel.Launch(stream, args); });
    // Weights of float16 may be subnormal: their rounding is not relative to them, but below the bound of their RMS.
    const double subnormal = run.type() == DataType::kFloat16 && !args.log ? 0x1p-25 * n : 0;
    Compare(run.FetchNumbers(args.y, x.size()), right, run.type(), kSumsBound + subnormal, check);
  }
  return run.status();
}

Status CheckNorm(CheckRun& run, int n, KernelCheck* check) {
  RowKernel kernel;
  MXORT_RETURN_IF_ERROR(RowKernel::Load(run.device(), "norm", &kernel));
  const auto size = static_cast<size_t>(n);
  const std::vector<float> x = run.Numbers(kCount * size, 2, 0.5f), skip = run.Numbers(kOuter * size),
                           bias = run.Numbers(size), scale = run.Numbers(size, 0.5f, 1), shift = run.Numbers(size);
  hip::NormArgs args{};
  args.shape = {kCount, static_cast<unsigned>(n), 1};
  args.x = run.SendNumbers(x), args.skip = run.SendNumbers(skip), args.bias = run.SendNumbers(bias);
  args.scale = run.SendNumbers(scale), args.shift = run.SendNumbers(shift);
  args.skip_rows = kOuter;
  args.epsilon = 1e-3f;
  args.type = args.scale_type = args.out_type = run.device_type();
  for (args.rms = 0; args.rms < 2; ++args.rms) {
    std::vector<double> y, sum, mean, inverse;
    for (size_t row = 0; row < kCount; ++row) {
      std::vector<double> v(size);
      for (size_t k = 0; k < size; ++k) {
        v[k] = static_cast<double>(x[row * size + k]) + static_cast<double>(skip[row % kOuter * size + k]) +
               static_cast<double>(bias[k]);
      }
      mean.push_back(args.rms ? 0 : Reduced(hip::Reduction::kMean, v));
      double squares = 0;
      for (const double value : v) squares += (value - mean.back()) * (value - mean.back());
      inverse.push_back(1 / std::sqrt(squares / n + static_cast<double>(args.epsilon)));
      for (size_t k = 0; k < size; ++k) {
        y.push_back((v[k] - mean.back()) * inverse.back() * static_cast<double>(scale[k]) +
                    static_cast<double>(shift[k]));
      }
      sum.insert(sum.end(), v.begin(), v.end());
    }
    args.y = run.AllocateNumbers(x.size()), args.sum = run.AllocateNumbers(x.size());
    args.mean = args.rms ? nullptr : static_cast<float*>(run.Allocate(kCount * sizeof(float)));
    args.inverse = static_cast<float*>(run.Allocate(kCount * sizeof(float)));
    run.Launch([&](void* stream) { return kernel.Launch(stream, args); });
    Compare(run.FetchNumbers(args.y, y.size()), y, run.type(), kSumsBound, check);
    Compare(run.FetchNumbers(args.sum, sum.size()), sum, run.type(), kSumsBound, check);
    Compare(run.Fetch<float>(args.inverse, kCount), inverse, DataType::kFloat, kSumsBound, check);
    if (!args.rms) Compare(run.Fetch<float>(args.mean, kCount), mean, DataType::kFloat, kSumsBound, check);
  }
  return run.status();
}

Status CheckReduction(CheckRun& run, int n, KernelCheck* check) {
  RowKernel kernel;
  MXORT_RETURN_IF_ERROR(RowKernel::Load(run.device(), "reduce_rows", &kernel));
  const std::vector<float> x = run.Numbers(kCount * static_cast<size_t>(n), 0.0625f, 1);  // whose product is a number
  hip::ReduceRowsArgs args{};
  args.shape = ShapeOf(n);
  args.x = run.SendNumbers(x);
  args.type = run.device_type();
  for (int reduction = 0; reduction <= static_cast<int>(hip::Reduction::kLogSumExp); ++reduction) {
    args.reduction = reduction;
    args.y = run.AllocateNumbers(kCount);
    run.Launch([&](void* stream) { return kernel.Launch(stream, args); });
    std::vector<double> right;
    for (size_t row = 0; row < kCount; ++row) {
      right.push_back(Reduced(static_cast<hip::Reduction>(reduction), RowOf(x, row, n)));
    }
    Compare(run.FetchNumbers(args.y, kCount), right, run.type(), kSumsBound, check);
  }
  return run.status();
}

Status CheckReduceWhole(CheckRun& run, int n, KernelCheck* check) {
  Kernel kernel;
  MXORT_RETURN_IF_ERROR(Kernel::Load(run.device(), "rows", "reduce_whole", &kernel));
  std::vector<float> x(kCount * static_cast<size_t>(n));
  for (float& value : x) value = run.Whole(2) ? -1.0f : 1.0f;  // small numbers, whose product is exact
  for (size_t row = 0; row < kCount; ++row) x[At(row, 7, n)] = static_cast<float>(row) - 7.0f;
  using hip::Reduction;
  for (const bool wide : {false, true}) {
    hip::ReduceRowsArgs args{};
    args.shape = ShapeOf(n);
    args.x =
        wide ? run.Send(std::vector<int64_t>(x.begin(), x.end())) : run.Send(std::vector<int32_t>(x.begin(), x.end()));
    args.type = static_cast<int>(wide ? hip::Type::kInt64 : hip::Type::kInt32);
    for (const Reduction reduction : {Reduction::kSum, Reduction::kMean, Reduction::kMax, Reduction::kMin,
                                      Reduction::kProd, Reduction::kL1, Reduction::kSumSquare}) {
      args.reduction = static_cast<int>(reduction);
      args.y = run.Allocate(kCount * (wide ? sizeof(int64_t) : sizeof(int32_t)));
      run.Launch([&](void* stream) { return LaunchReduceWhole(kernel, stream, args); });
      std::vector<double> right;
      for (size_t row = 0; row < kCount; ++row) right.push_back(std::trunc(Reduced(reduction, RowOf(x, row, n))) + 0.5);
      std::vector<float> got;
      if (wide) {
        for (const int64_t y : run.Fetch<int64_t>(args.y, kCount)) got.push_back(static_cast<float>(y) + 0.5f);
      } else {
        for (const int32_t y : run.Fetch<int32_t>(args.y, kCount)) got.push_back(static_cast<float>(y) + 0.5f);
      }
      Compare(got, right, DataType::kFloat, 0, check);  // a half more, so that means of zero have a size
    }
  }
  return run.status();
}

// Few different values, so that the order of equal ones shows.
Status CheckTop(CheckRun& run, int n, KernelCheck* check) {
  constexpr unsigned kPlaces = 3;
  Kernel kernel;
  MXORT_RETURN_IF_ERROR(Kernel::Load(run.device(), "rows", "top", &kernel));
  std::vector<float> x(kCount * static_cast<size_t>(n));
  for (float& value : x) value = static_cast<float>(run.Whole(40)) / 4 - 5;
  hip::TopArgs args{};
  args.shape = ShapeOf(n);
  args.x = run.SendNumbers(x);
  args.k = kPlaces;
  args.type = run.device_type();
  for (const int smallest : {0, 1}) {
    args.smallest = smallest, args.last = smallest;
    args.values = run.AllocateNumbers(kCount * kPlaces);
    args.indices = static_cast<long long*>(run.Allocate(kCount * kPlaces * sizeof(int64_t)));
    run.Launch([&](void* stream) { return LaunchTop(kernel, stream, args); });
    std::vector<double> values(kCount * kPlaces), indices(values.size());
    for (size_t row = 0; row < kCount; ++row) {
      const std::vector<double> of_row = RowOf(x, row, n);
      std::vector<size_t> order(of_row.size());
      std::iota(order.begin(), order.end(), size_t{0});
      std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        if (of_row[a] != of_row[b]) return (of_row[a] > of_row[b]) != (smallest != 0);
        return smallest ? a > b : a < b;
      });
      for (size_t place = 0; place < kPlaces; ++place) {
        const size_t at = At(row, place, kPlaces);
        values[at] = of_row[order[place]], indices[at] = static_cast<double>(order[place]);
      }
    }
    std::vector<float> got;
    for (const int64_t index : run.Fetch<int64_t>(args.indices, indices.size()))
      got.push_back(static_cast<float>(index));
    Compare(run.FetchNumbers(args.values, values.size()), values, run.type(), 0, check);
    Compare(got, indices, DataType::kFloat, 0, check);
  }
  return run.status();
}

}  // namespace mxort::device
