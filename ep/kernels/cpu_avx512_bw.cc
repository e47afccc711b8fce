// AVX-512 without VNNI (Skylake servers): the integer kernel.
#include "kernels/cpu_kernels.h"
#include "kernels/int8_avx512.h"

namespace mxort {

namespace {
bool HasAvx512(const CpuFeatures& cpu) { return cpu.avx512; }
}  // namespace

const Kernel kAvx512Bw = Int8Kernel<Int8Avx512, IntegerNibbles<Int8Avx512>>::Row("avx512_bw", HasAvx512);
const Kernel kAvx512BwMxint8 = Int8Kernel<Int8Avx512, IntegerBytes<Int8Avx512>>::Row("avx512_bw_mxint8", HasAvx512);

}  // namespace mxort
