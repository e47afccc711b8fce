// AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): the integer kernel.
#include "kernels/cpu_kernels.h"
#include "kernels/int8_avx512.h"

namespace mxort {

const Kernel kAvx512Vnni = Int8Kernel<Int8Avx512, IntegerNibbles<Int8Avx512>>::Row(
    "avx512_vnni", [](const CpuFeatures& cpu) { return cpu.avx512_vnni_vbmi; });

}  // namespace mxort
