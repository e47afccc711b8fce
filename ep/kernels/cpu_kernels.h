// The kernels, one file each (cpu_<isa>.cc, reference.cc); kernel_table.cc orders them.
#ifndef MXORT_KERNELS_CPU_KERNELS_H_
#define MXORT_KERNELS_CPU_KERNELS_H_

#include "kernels/kernel.h"

namespace mxort {

extern const Kernel kPortable;
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kAvx512Vnni;
extern const Kernel kAvx512VnniBw;
extern const Kernel kAvx512Bw;
extern const Kernel kAvxVnni;
extern const Kernel kAvx2Int8;
extern const Kernel kAmx;

// The oracle: plain loops in double over the operator's own weights. Computes rows [begin, end).
void ReferenceMatMul(const MatMulSpec& spec, DataType type, const void* a, const Weights& weights,
                     const float* column_scale, const float* bias, Range rows, void* y);

}  // namespace mxort

#endif  // MXORT_KERNELS_CPU_KERNELS_H_
