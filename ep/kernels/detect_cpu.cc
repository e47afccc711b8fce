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

// The bits of a CPUID leaf; zeros where the CPU has no such leaf. Read here and not by __builtin_cpu_supports: that
// looks into a table of the compiler's runtime library, which that of zig (make wheel) leaves empty.
struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool Has(unsigned word, unsigned bit) { return word & (1u << bit); }

// Whether the operating system saves all of `registers` (bits of XCR0) when it changes threads.
bool SavesRegisters(const Leaf& basic, unsigned registers) {
  constexpr unsigned kOsxsave = 27;
  if (!Has(basic.c, kOsxsave)) return false;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
}

// Linux must grant the tile registers, which it does once for a process.
bool GrantsTiles() {
#if defined(__linux__)
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
  constexpr unsigned kXmmYmm = 0x06, kZmm = 0xe6;  // with the masks
  const Leaf basic(1, 0), extended(7, 0), more(7, 1);
  CpuFeatures cpu;
  // Leaf 1: FMA, AVX, F16C. Leaf 7: AVX2, AVX512F, DQ, BW, VL, VNNI, VBMI; subleaf 1: AVX-VNNI.
  cpu.avx2_fma =
      SavesRegisters(basic, kXmmYmm) && Has(basic.c, 12) && Has(basic.c, 28) && Has(basic.c, 29) && Has(extended.b, 5);
  cpu.avx512 = cpu.avx2_fma && SavesRegisters(basic, kZmm) && Has(extended.b, 16) && Has(extended.b, 17) &&
               Has(extended.b, 30) && Has(extended.b, 31);
  cpu.avx512_vnni = cpu.avx512 && Has(extended.c, 11);
  cpu.avx512_vnni_vbmi = cpu.avx512_vnni && Has(extended.c, 1);
  cpu.avx_vnni = cpu.avx2_fma && Has(more.a, 4);
  // Leaf 7: AMX-BF16, AMX-TILE. The kernel was written without a CPU that has AMX: it has to show itself right first.
  static const bool amx = cpu.avx512 && Has(extended.d, 22) && Has(extended.d, 24) && GrantsTiles() &&
                          ((SelfCheck(kAmx) && SelfCheck(kAmxMxint8)) || Warn("avx512_amx"));
  cpu.amx_bf16 = amx;
  return cpu;
}
#else
CpuFeatures DetectCpu() { return {}; }
#endif

}  // namespace mxort
