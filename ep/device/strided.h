// Kernels that visit every element of a tensor once (kernels/hip/strided.hip): copies between views,
// gathering.
#ifndef MXORT_DEVICE_STRIDED_H_
#define MXORT_DEVICE_STRIDED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/kernel.h"
#include "kernels/hip/args_strided.h"

namespace mxort::device {

using Dims = std::vector<int64_t>;  // sizes or strides, in elements

// Of an element.
size_t BytesOf(hip::Type type);
// Strides of a contiguous tensor.
Dims ContiguousStrides(const Dims& dims);
// Strides with which a contiguous tensor `dims` reads as `to`, by ONNX's (NumPy's) broadcasting. Empty where it cannot.
Dims BroadcastStrides(const Dims& dims, const Dims& to);
// False where the shapes cannot be broadcast together.
bool Broadcast(const Dims& a, const Dims& b, Dims* both);

// A tensor of the device, contiguous.
struct Operand {
  const void* data = nullptr;  // null: absent
  hip::Type type = hip::Type::kFloat;
  Dims dims;
};

// A view of a tensor of the device.
struct View {
  const void* data;
  Dims strides;
};

// Copies of elements of 1, 2, 4 or 8 bytes.
class Copier {
 public:
  static Status Load(const std::shared_ptr<Device>& device, Copier* copier);
  // out[i] = in[i] for every index i of `dims`.
  Status Launch(void* stream, const View& in, void* out, const Dims& out_strides, const Dims& dims, size_t bytes) const;

 private:
  std::array<Kernel, 5> kernels_;  // of 1, 2, 4, 8, 16 bytes
};

// out[i] = data[at(i)], where indices in the device's memory say where along `axes` of data.
class Gatherer {
 public:
  static Status Load(const std::shared_ptr<Device>& device, Gatherer* gatherer);
  struct Axis {
    int64_t size, stride;  // of data
  };
  // For every index i of `dims`: `data`, `indices` (whose axes.size() numbers lie next to each other) and `out`
  // (contiguous). Indices may count from the end; those beyond an axis give zero.
  Status Launch(void* stream, const View& data, const View& indices, hip::Type index_type,
                const std::vector<Axis>& axes, void* out, const Dims& dims, size_t bytes) const;

 private:
  std::array<Kernel, 5> kernels_;
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_STRIDED_H_
