// AVX2: the integer kernel.
#include "kernels/cpu_kernels.h"
#include "kernels/int8_avx2.h"

namespace mxort {

const Kernel kAvx2Int8 = Int8Kernel<Int8Avx2>::Row("avx2_int8", [](const CpuFeatures& cpu) { return cpu.avx2_fma; });

}  // namespace mxort
