// Weight quantisation in mxort._native.
#ifndef MXORT_PYTHON_QUANTIZE_BINDINGS_H_
#define MXORT_PYTHON_QUANTIZE_BINDINGS_H_

#include <pybind11/pybind11.h>

namespace mxort {

void BindQuantize(pybind11::module_& m);

}  // namespace mxort

#endif  // MXORT_PYTHON_QUANTIZE_BINDINGS_H_
