// What this CPU can do. Above the kernels and their table, because it runs the AMX kernel once.
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdio>

#include "kernels/cpu_kernels.h"
#include "kernels/self_check.h"

namespace mxort {

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
