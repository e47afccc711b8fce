// The table of kernels and the choice of one: a pure function of the problem, the CPU and the override.
#ifndef MXORT_KERNELS_KERNEL_TABLE_H_
#define MXORT_KERNELS_KERNEL_TABLE_H_

#include <string>
#include <vector>

#include "kernels/kernel.h"

namespace mxort {

// All kernels that were built, best first. The last row, "reference", computes everything and is chosen only by name.
const std::vector<const Kernel*>& KernelTable();

// The first row from `first` (empty: the top; a row's name: that row, so that "avx2" behaves as a machine that has no
// more than AVX2) that the CPU has and that supports the spec. Throws std::invalid_argument for an unknown name or for
// one that this CPU cannot run.
const Kernel& SelectKernel(const MatMulSpec& spec, const CpuFeatures& cpu, const std::string& first);

// The value of the environment variable MXORT_KERNEL, or empty.
std::string KernelOverride();

}  // namespace mxort

#endif  // MXORT_KERNELS_KERNEL_TABLE_H_
