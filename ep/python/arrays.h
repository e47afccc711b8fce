// numpy arrays as the operator's arguments.
#ifndef MXORT_PYTHON_ARRAYS_H_
#define MXORT_PYTHON_ARRAYS_H_

#include <pybind11/numpy.h>

#include <stdexcept>
#include <string>

#include "kernels/kernel.h"
#include "ops/matmul_spec.h"

namespace mxort {

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

inline DataType TypeOf(const pybind11::dtype& dtype) {
  const std::string name = pybind11::str(dtype);
  if (name == "float32") return DataType::kFloat;
  if (name == "float16") return DataType::kFloat16;
  if (name == "bfloat16") return DataType::kBFloat16;  // ml_dtypes
  throw std::invalid_argument("A: got dtype " + name + ", expected float32, float16 or bfloat16");
}

template <class T>
Shape ShapeOf(const T& a) {
  return Shape(a.shape(), a.shape() + a.ndim());
}

// The operator's constant inputs, with their shapes checked.
struct ConstantInputs {
  Array<uint8_t> codes, scales;
  Array<float> column_scale, bias;

  Weights weights() const { return {codes.data(), scales.data()}; }
  int64_t N() const { return codes.ndim() ? codes.shape(0) : 0; }
  void Check(const MatMulSpec& spec) const {
    CheckInput(spec, kB, ShapeOf(codes));
    CheckInput(spec, kBScale, ShapeOf(scales));
    CheckInput(spec, kColumnScale, ShapeOf(column_scale));
    CheckInput(spec, kBias, ShapeOf(bias));
  }
};

// Y for an A [..., K]: shape and type of the result, rows of A.
struct Rows {
  Rows(const MatMulSpec& spec, const pybind11::array& a) : shape(OutputShape(spec, ShapeOf(a))), y(a.dtype(), shape) {
    if (!(a.flags() & pybind11::array::c_style)) {
      throw std::invalid_argument("A: got a strided array, expected C order");
    }
    for (size_t i = 0; i + 1 < shape.size(); ++i) count *= shape[i];
  }
  Shape shape;
  pybind11::array y;
  int64_t count = 1;
};

}  // namespace mxort

#endif  // MXORT_PYTHON_ARRAYS_H_
