// AVX2 with AVX-VNNI (Alder Lake and later): the integer kernel. A build with MXORT_EMULATE encodes the same
// instructions as AVX-512 does, which more CPUs can run.
#include "kernels/cpu_kernels.h"
#include "kernels/int8_avx2.h"

namespace mxort {
namespace {

bool HasAvxVnni(const CpuFeatures& cpu) {
#if defined(MXORT_EMULATE)
  return cpu.avx512_vnni;
#else
  return cpu.avx_vnni;
#endif
}

}  // namespace

const Kernel kAvxVnni = Int8Kernel<Int8Avx2, IntegerNibbles<Int8Avx2>>::Row("avx_vnni", HasAvxVnni);
const Kernel kAvxVnniMxint8 = Int8Kernel<Int8Avx2, IntegerBytes<Int8Avx2>>::Row("avx_vnni_mxint8", HasAvxVnni);

}  // namespace mxort
