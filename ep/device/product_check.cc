// Self-checks of product.hip.
#include "device/product.h"

#include <algorithm>

#include "device/tensor_check_table.h"

namespace mxort::device {
namespace {

// C = 0.75 A B - 2 bias. `along_k` false: rows lie side by side. A pitch makes room for strides that no wide load
// takes.
struct Matrix {
  int64_t rows, k;
  bool along_k;
  int64_t pitch;
  std::vector<float> x;

  Matrix(CheckRun& run, int64_t of_rows, int64_t of_k, bool k_last, int64_t more)
      : rows(of_rows),
        k(of_k),
        along_k(k_last),
        pitch((k_last ? of_k : of_rows) + more),
        x(run.Numbers(static_cast<size_t>(pitch * (k_last ? of_rows : of_k)))) {}
  ProductView Send(CheckRun& run) const { return {run.SendNumbers(x), along_k ? pitch : 1, along_k ? 1 : pitch, {}}; }
  double At(int64_t row, int64_t at_k) const {
    return static_cast<double>(x[static_cast<size_t>(along_k ? row * pitch + at_k : at_k * pitch + row)]);
  }
};

Status CheckOne(CheckRun& run, const Product& product, Product::Kernels only, const Matrix& a, const Matrix& b,
                KernelCheck* check) {
  constexpr float kAlpha = 0.75f, kBeta = -2;
  const std::vector<float> bias = run.Numbers(static_cast<size_t>(b.rows));
  ProductProblem problem;
  problem.m = a.rows, problem.n = b.rows, problem.k = a.k;
  problem.a = a.Send(run), problem.b = b.Send(run);
  problem.bias = run.SendNumbers(bias), problem.bias_column = 1;
  problem.alpha = kAlpha, problem.beta = kBeta;
  const auto count = static_cast<size_t>(a.rows * b.rows);
  problem.c = run.AllocateNumbers(count);
  MXORT_RETURN_IF_ERROR(run.status());
  ProductLaunch launch;
  MXORT_RETURN_IF_ERROR(product.Plan(problem, &launch, only));
  void* workspace = run.Allocate(launch.workspace_bytes);
  run.Launch([&](void* stream) { return product.Launch(stream, launch, workspace); });
  std::vector<double> right;
  right.reserve(count);
  for (int64_t m = 0; m < a.rows; ++m) {
    for (int64_t n = 0; n < b.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < a.k; ++k) sum += a.At(m, k) * b.At(n, k);
      right.push_back(static_cast<double>(kAlpha) * sum + static_cast<double>(kBeta * bias[static_cast<size_t>(n)]));
    }
  }
  Compare(run.FetchNumbers(problem.c, count), right, run.type(), kSumsBound, check);
  return run.status();
}

}  // namespace

// One workgroup, most of its tile, several stages of K and a rest; every way to load.
Status CheckProduct(CheckRun& run, int kernel, KernelCheck* check) {
  Product product;
  MXORT_RETURN_IF_ERROR(Product::Load(run.device(), static_cast<hip::Type>(run.type()), &product));
  constexpr int64_t kRows = 13, kColumns = 56, kDepth = 328, kSplit = 1112, kStages = 152;
  const auto only = static_cast<Product::Kernels>(kernel);
  switch (only) {
    case Product::kSkinnyAlongK:
    case Product::kKernels: {
      const int64_t k = only == Product::kKernels ? kSplit : kDepth;
      const Matrix a(run, kRows, k, true, 8), b(run, kColumns, k, true, 8);
      return CheckOne(run, product, Product::kSkinnyAlongK, a, b, check);
    }
    case Product::kSkinnyAlongRows: {
      const Matrix a(run, kRows, kDepth, true, 1), b(run, kColumns, kDepth, false, 8);
      return CheckOne(run, product, only, a, b, check);
    }
    default: {
      const int64_t side = only == Product::kTile64 ? 64 : only == Product::kTile128 ? 128 : 256;
      const int64_t m = side - 8, n = side - 16;
      MXORT_RETURN_IF_ERROR(
          CheckOne(run, product, only, Matrix(run, m, kStages, true, 8), Matrix(run, n, kStages, false, 8), check));
      MXORT_RETURN_IF_ERROR(
          CheckOne(run, product, only, Matrix(run, m, kStages, false, 8), Matrix(run, n, kStages, true, 8), check));
      return CheckOne(run, product, only, Matrix(run, m - 1, kStages + 1, true, 2),
                      Matrix(run, n - 1, kStages + 1, false, 2), check);
    }
  }
}

Status CheckPatches(CheckRun& run, int bytes, KernelCheck* check) {
  Kernel kernel;
  MXORT_RETURN_IF_ERROR(Kernel::Load(run.device(), "product", bytes == 4 ? "patches_4" : "patches_2", &kernel));
  hip::PatchesArgs args{};
  constexpr unsigned kBatches = 2;
  args.channels = 2;
  args.size[0] = 6, args.size[1] = 7;
  args.window[0] = 2, args.window[1] = 3;
  args.stride[0] = 2, args.stride[1] = 1;
  args.dilation[0] = 1, args.dilation[1] = 2;
  args.pad[0] = args.pad[1] = 1;
  args.output[0] = 4, args.output[1] = 5;
  args.elements = args.channels * 6 * 20;
  const auto element = static_cast<size_t>(bytes);
  const std::vector<uint8_t> x = run.Bytes(kBatches * args.channels * 42 * element);
  std::vector<uint8_t> right(kBatches * args.elements * element);
  args.x = run.Send(x);
  args.columns = run.Allocate(right.size());
  run.Launch(
      [&](void* stream) { return kernel.Launch({(args.elements + 255) / 256, kBatches, 1}, 256, stream, &args); });
  for (size_t i = 0; i < kBatches * args.elements; ++i) {
    const size_t point = i % 20, at = i / 20 % 6, image = i / 120;  // batch and channel
    const auto row = static_cast<int>(point / 5 * 2 + at / 3) - 1,
               column = static_cast<int>(point % 5 + at % 3 * 2) - 1;
    if (row < 0 || row >= 6 || column < 0 || column >= 7) continue;
    const size_t from = image * 42 + static_cast<size_t>(row * 7 + column);
    std::copy_n(&x[from * element], element, &right[i * element]);
  }
  CompareBytes(run.Fetch(args.columns, right.size()), right, check);
  return run.status();
}

}  // namespace mxort::device
