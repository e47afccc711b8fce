// Measurements of the machine's own limits, bound into _native.
#ifndef MXORT_PYTHON_LIMITS_H_
#define MXORT_PYTHON_LIMITS_H_

#include <pybind11/pybind11.h>

namespace mxort {

void BindLimits(pybind11::module_& m);

}  // namespace mxort

#endif  // MXORT_PYTHON_LIMITS_H_
