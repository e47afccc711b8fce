// AVX-512 with VNNI but without VBMI (Cascade Lake): the integer kernel.
#include "kernels/cpu_kernels.h"
#include "kernels/int8_avx512.h"

namespace mxort {

const Kernel kAvx512VnniBw =
    Int8Kernel<Int8Avx512>::Row("avx512_vnni_bw", [](const CpuFeatures& cpu) { return cpu.avx512_vnni; });

}  // namespace mxort
