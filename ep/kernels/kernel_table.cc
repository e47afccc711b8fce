#include "kernels/kernel_table.h"

#include <cstdlib>
#include <stdexcept>

#include "kernels/cpu_kernels.h"
#include "kernels/vector_functions.h"

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

const VectorFunctions& SelectFunctions([[maybe_unused]] const CpuFeatures& cpu,
                                       [[maybe_unused]] const std::string& first) {
#if defined(__x86_64__)
  const bool any = first.empty();
  static const VectorFunctions vnni = [] {
    VectorFunctions functions = kAvx512Functions;
    functions.attend_keys = AttendKeysVnni;
    return functions;
  }();
  const bool may_vnni = any || first.rfind("avx512_vnni", 0) == 0 || first == "avx512_amx";
  if (cpu.avx512_vnni && may_vnni) return vnni;
  if (cpu.avx512 && (any || first.rfind("avx512", 0) == 0)) return kAvx512Functions;
  if (cpu.avx2_fma && (any || first.rfind("avx", 0) == 0)) return kAvx2Functions;
#endif
  return kPortableFunctions;
}

const std::vector<const Kernel*>& KernelTable() {
  static const std::vector<const Kernel*> table = {
#if defined(__x86_64__)
      // of MXFP4
      &kAmx, &kAvx512Vnni, &kAvx512VnniBw, &kAvx512Bw, &kAvx512, &kAvxVnni, &kAvx2Int8, &kAvx2,
      // of MXINT8
      &kAmxMxint8, &kAvx512VnniMxint8, &kAvx512BwMxint8, &kAvx512Mxint8, &kAvxVnniMxint8, &kAvx2Int8Mxint8,
      &kAvx2Mxint8,
      // of the wider minifloats
      &kAvx512Byte, &kAvx2Byte,
#endif
      &kPortable, &kPortableMxint8, &kPortableByte, &kReference};
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

}  // namespace mxort
