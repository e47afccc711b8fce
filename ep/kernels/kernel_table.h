// The table of kernels and the choice of one: a pure function of the problem, the CPU and the override.
#ifndef MXORT_KERNELS_KERNEL_TABLE_H_
#define MXORT_KERNELS_KERNEL_TABLE_H_

#include <string>
#include <vector>

#include "kernels/kernel.h"

namespace mxort {

// All kernels that were built, best first. The last row, "reference", computes everything and is chosen only by name.
const std::vector<const Kernel*>& KernelTable();

// Rows of the table for one operator, best first, all of one weight layout; which one runs depends on the rows of A.
using Kernels = std::vector<const Kernel*>;

// The rows from `first` on (empty: the top; a row's name: that row, so that "avx2" behaves as a machine that has no
// more than AVX2) that the CPU has and that support the spec. Throws std::invalid_argument for an unknown name or for
// one that this CPU cannot run.
Kernels SelectKernels(const MatMulSpec& spec, const CpuFeatures& cpu, const std::string& first);

// The kernel of `kernels` for M rows of A.
const Kernel& KernelFor(const Kernels& kernels, int64_t rows, const ScaleRange& scales);

// The value of the environment variable MXORT_KERNEL, or empty.
std::string KernelOverride();

}  // namespace mxort

#endif  // MXORT_KERNELS_KERNEL_TABLE_H_
