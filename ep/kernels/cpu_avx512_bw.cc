// AVX-512 without VNNI (Skylake servers): the integer kernel.
#include "kernels/cpu_kernels.h"
#include "kernels/int8_avx512.h"

namespace mxort {

const Kernel kAvx512Bw = Int8Kernel<Int8Avx512>::Row("avx512_bw", [](const CpuFeatures& cpu) { return cpu.avx512; });

}  // namespace mxort
