#include "kernels/quantize.h"

namespace mxort {

void QuantizeWeights(const QuantizeArgs& args, Range rows) {
  using Variant = void (*)(const QuantizeArgs&, Range);
  static const Variant variant = [] {
    [[maybe_unused]] const CpuFeatures cpu = DetectCpu();
#if defined(__x86_64__)
    if (cpu.avx512) return QuantizeRowsAvx512;
    if (cpu.avx2_fma) return QuantizeRowsAvx2;
#endif
    return QuantizeRowsPortable;
  }();
  variant(args, rows);
}

}  // namespace mxort
