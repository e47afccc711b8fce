// AVX2: the integer kernel.
#include "kernels/cpu_kernels.h"
#include "kernels/int8_avx2.h"

namespace mxort {

namespace {
bool HasAvx2(const CpuFeatures& cpu) { return cpu.avx2_fma; }
}  // namespace

const Kernel kAvx2Int8 = Int8Kernel<Int8Avx2, IntegerNibbles<Int8Avx2>>::Row("avx2_int8", HasAvx2);
const Kernel kAvx2Int8Mxint8 = Int8Kernel<Int8Avx2, IntegerBytes<Int8Avx2>>::Row("avx2_int8_mxint8", HasAvx2);

}  // namespace mxort
