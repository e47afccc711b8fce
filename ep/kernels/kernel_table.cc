#include "kernels/kernel_table.h"

#include <cpuid.h>

#include <cstdlib>
#include <stdexcept>

#include "kernels/cpu_kernels.h"

namespace mxort {
namespace {

bool Always(const CpuFeatures&) { return true; }
bool Everything(const MatMulSpec&) { return true; }
size_t NoBytes(const MatMulSpec&) { return 0; }
int OneRow(const MatMulSpec&) { return 1; }
size_t NoPanelBytes(const MatMulSpec&, int) { return 0; }
// Declining every row sends it to ReferenceMatMul, so there is nothing for `compute` to do.
bool DeclineRow(const MatMulSpec&, DataType, const void*, int, int, float*, uint8_t*) { return false; }
void ComputeNothing(const MatMulArgs&, Range, Range) {}

const WeightLayout kNoLayout = {"none", NoBytes, [](const MatMulSpec&, const Weights&, int64_t, int64_t, uint8_t*) {}};
const Kernel kReference = {"reference", &kNoLayout,   Always,     Everything,
                           OneRow,      NoPanelBytes, DeclineRow, ComputeNothing};

}  // namespace

const std::vector<const Kernel*>& KernelTable() {
  static const std::vector<const Kernel*> table = {
#if defined(__x86_64__)
      &kAvx512Vnni, &kAvx512, &kAvx2,
#endif
      &kPortable, &kReference};
  return table;
}

const Kernel& SelectKernel(const MatMulSpec& spec, const CpuFeatures& cpu, const std::string& first) {
  bool reached = first.empty();
  std::string known;
  for (const Kernel* kernel : KernelTable()) {
    known += std::string(known.empty() ? "" : ", ") + kernel->name;
    if (!reached && first == kernel->name) {
      if (!kernel->cpu_has(cpu)) throw std::invalid_argument("MXORT_KERNEL=" + first + ": this CPU cannot run it");
      reached = true;
    }
    if (reached && kernel->cpu_has(cpu) && kernel->supports(spec)) return *kernel;
  }
  throw std::invalid_argument("MXORT_KERNEL: unknown kernel '" + first + "', expected one of " + known);
}

std::string KernelOverride() {
  const char* name = std::getenv("MXORT_KERNEL");
  return name ? name : "";
}

#if defined(__x86_64__)
CpuFeatures DetectCpu() {
  // GCC's own test includes whether the operating system saves the registers (XCR0).
  __builtin_cpu_init();
  CpuFeatures cpu;
  unsigned a, b, c = 0, d;
  __get_cpuid(1, &a, &b, &c, &d);
  const bool f16c = c & bit_F16C;
  cpu.avx2_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  cpu.avx512 = cpu.avx2_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  cpu.avx512_vnni_vbmi = cpu.avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
  return cpu;
}
#else
CpuFeatures DetectCpu() { return {}; }
#endif

}  // namespace mxort
