// Products of two tensors on a device (kernels/hip/product.hip): batches, any strides, a bias.
#ifndef MXORT_DEVICE_PRODUCT_H_
#define MXORT_DEVICE_PRODUCT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/kernel.h"
#include "kernels/hip/args.h"
#include "kernels/hip/args_product.h"

namespace mxort::device {

// Strides in elements, not negative. `batch`: one for each of the problem's batch dimensions, 0 where broadcast.
struct ProductView {
  const void* data = nullptr;
  int64_t row = 0, k = 0;  // of B: its columns
  std::vector<int64_t> batch;
};

// C[batch, m, n] = alpha * sum over k of A[batch, m, k] B[batch, k, n] + beta * bias[m, n], C contiguous, all of the
// type that the kernels were loaded for. Sums are floats; only the end is rounded to the type.
struct ProductProblem {
  std::vector<int64_t> batch;  // extents, outermost first
  int64_t m = 0, n = 0, k = 0;
  ProductView a, b;
  const void* bias = nullptr;  // null: none
  int64_t bias_row = 0, bias_column = 0;
  void* c = nullptr;  // 16-byte aligned
  float alpha = 1, beta = 1;
};

// How a problem is launched.
struct ProductLaunch {
  size_t kernel = 0;
  hip::Grid grid{}, reduce_grid{};
  hip::ProductArgs args{};
  size_t workspace_bytes = 0;
};

class Product {
 public:
  // Sides of tiles, and the kernels for few rows.
  enum Kernels : size_t { kTile64, kTile128, kTile256, kSkinnyAlongK, kSkinnyAlongRows, kKernels };

  // `type`: float, float16 or bfloat16.
  static Status Load(const std::shared_ptr<Device>& device, hip::Type type, Product* product);

  // Calls nothing of HIP. `only`: this kernel, which must be able to; else the best one. kUnsupported: more than three
  // batch dimensions that do not merge, or more elements between rows than offsets can hold.
  Status Plan(const ProductProblem& problem, ProductLaunch* launch, Kernels only = kKernels) const;
  static bool HasLargest(const Device& device, hip::Type type);  // kTile256
  // `workspace`: launch.workspace_bytes of the device. Calls nothing that a stream under capture forbids.
  Status Launch(void* stream, const ProductLaunch& launch, void* workspace) const;
  const char* KernelOf(const ProductLaunch& launch) const { return kernels_[launch.kernel].name().c_str(); }

 private:
  struct Shape;
  Shape ShapeOf(const ProductProblem& merged, int64_t batches, Kernels only) const;

  hip::Type type_ = hip::Type::kFloat;
  int compute_units_ = 0;
  std::array<Kernel, kKernels> kernels_;
  bool largest_ = false;  // whether there is a tile of 256 x 256
  Kernel reduce_;
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_PRODUCT_H_
