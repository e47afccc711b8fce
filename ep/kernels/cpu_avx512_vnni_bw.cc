// AVX-512 with VNNI but without VBMI (Cascade Lake): the integer kernel. MXINT8 needs no look-up, so that its kernel is
// the best for CPUs with VBMI too.
#include "kernels/cpu_kernels.h"
#include "kernels/int8_avx512.h"

namespace mxort {

namespace {
bool HasVnni(const CpuFeatures& cpu) { return cpu.avx512_vnni; }
}  // namespace

const Kernel kAvx512VnniBw = Int8Kernel<Int8Avx512, IntegerNibbles<Int8Avx512>>::Row("avx512_vnni_bw", HasVnni);
const Kernel kAvx512VnniMxint8 = Int8Kernel<Int8Avx512, IntegerBytes<Int8Avx512>>::Row("avx512_vnni_mxint8", HasVnni);

}  // namespace mxort
