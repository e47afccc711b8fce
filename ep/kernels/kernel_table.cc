#include "kernels/kernel_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "kernels/cpu_kernels.h"
#include "kernels/self_check.h"

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

const WeightLayout kNoLayout = {"none", [](WeightFormat) { return true; }, NoBytes,
                                [](const MatMulSpec&, const Weights&, int64_t, int64_t, uint8_t*) {}};
const Kernel kReference = {"reference", &kNoLayout,   Always,     Everything,
                           OneRow,      NoPanelBytes, DeclineRow, ComputeNothing};

}  // namespace

const std::vector<const Kernel*>& KernelTable() {
  static const std::vector<const Kernel*> table = {
#if defined(__x86_64__)
      &kAmx,        &kAvx512Vnni,   &kAvx512VnniBw, &kAvx512Bw, &kAvx512,
      &kAvx512Byte, &kAvxVnni,      &kAvx2Int8,     &kAvx2,     &kAvx2Byte,
#endif
      &kPortable,   &kPortableByte, &kReference};
  return table;
}

Kernels SelectKernels(const MatMulSpec& spec, const CpuFeatures& cpu, const std::string& first) {
  bool reached = first.empty();
  std::string known;
  Kernels kernels;
  for (const Kernel* kernel : KernelTable()) {
    known += std::string(known.empty() ? "" : ", ") + kernel->name;
    if (!reached && first == kernel->name) {
      if (!kernel->cpu_has(cpu)) throw std::invalid_argument("MXORT_KERNEL=" + first + ": this CPU cannot run it");
      reached = true;
    }
    const bool usable =
        reached && kernel->cpu_has(cpu) && kernel->layout->holds(spec.weight_format) && kernel->supports(spec);
    if (usable && (kernels.empty() || kernels[0]->layout == kernel->layout)) kernels.push_back(kernel);
  }
  if (!reached) throw std::invalid_argument("MXORT_KERNEL: unknown kernel '" + first + "', expected one of " + known);
  return kernels;
}

const Kernel& KernelFor(const Kernels& kernels, int64_t rows, const ScaleRange& scales) {
  for (const Kernel* kernel : kernels) {
    if (rows >= kernel->min_rows && kernel->scales.Holds(scales)) return *kernel;
  }
  return *kernels.back();  // every table ends in rows that take everything
}

std::string KernelOverride() {
  const char* name = std::getenv("MXORT_KERNEL");
  return name ? name : "";
}

#if defined(__x86_64__)
namespace {

// CPUID leaf 7, subleaf 1: GCC 12 knows no name for it.
bool HasAvxVnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}

// CPUID leaf 7: AMX-TILE and AMX-BF16; then Linux must grant the tile registers, which it does once for a process.
bool HasAmx() {
#if defined(__linux__)
  unsigned a, b, c, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 24)) || !(d & (1u << 22))) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool Warn(const char* kernel) {
  std::fprintf(stderr, "mxort: warning: kernel %s disagrees with the reference on this CPU and is not used\n", kernel);
  return false;
}

}  // namespace

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
  cpu.avx512_vnni = cpu.avx512 && __builtin_cpu_supports("avx512vnni");
  cpu.avx512_vnni_vbmi = cpu.avx512_vnni && __builtin_cpu_supports("avx512vbmi");
  cpu.avx_vnni = cpu.avx2_fma && HasAvxVnni();
  // The AMX kernel was written without a CPU that has AMX: it has to show itself right first.
  static const bool amx = cpu.avx512 && HasAmx() && (SelfCheck(kAmx) || Warn("avx512_amx"));
  cpu.amx_bf16 = amx;
  return cpu;
}
#else
CpuFeatures DetectCpu() { return {}; }
#endif

}  // namespace mxort
