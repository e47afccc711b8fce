// The kernels, one file each (cpu_<isa>.cc, reference.cc); kernel_table.cc orders them.
#ifndef MXORT_KERNELS_CPU_KERNELS_H_
#define MXORT_KERNELS_CPU_KERNELS_H_

#include "kernels/kernel.h"

namespace mxort {

extern const Kernel kPortable, kPortableByte, kPortableMxint8;
extern const Kernel kAvx2, kAvx2Byte, kAvx2Mxint8;
extern const Kernel kAvx512, kAvx512Byte, kAvx512Mxint8;
extern const Kernel kAvx512Vnni;
extern const Kernel kAvx512VnniBw, kAvx512VnniMxint8;
extern const Kernel kAvx512Bw, kAvx512BwMxint8;
extern const Kernel kAvxVnni, kAvxVnniMxint8;
extern const Kernel kAvx2Int8, kAvx2Int8Mxint8;
extern const Kernel kAmx, kAmxMxint8;

// The oracle: plain loops in double over the operator's own weights. Computes rows [begin, end) of Y, which `y` holds
// alone.
void ReferenceMatMul(const MatMulSpec& spec, DataType type, const void* a, const Weights& weights,
                     const float* column_scale, const float* bias, Range rows, DataType y_type, void* y);

}  // namespace mxort

#endif  // MXORT_KERNELS_CPU_KERNELS_H_
