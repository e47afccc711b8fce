// A kernel against the reference on a fixed small problem.
#ifndef MXORT_KERNELS_SELF_CHECK_H_
#define MXORT_KERNELS_SELF_CHECK_H_

#include "kernels/kernel.h"

namespace mxort {

// Whether the kernel gives the right result, for each accuracy level and an activation format, with tails in every
// dimension. For kernels that could not be run where they were written: they are used only after this. About a
// millisecond.
bool SelfCheck(const Kernel& kernel);

}  // namespace mxort

#endif  // MXORT_KERNELS_SELF_CHECK_H_
