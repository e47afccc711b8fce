// The self-check passes for every kernel of this CPU and fails for kernels that are wrong.
#include <cstdio>

#include "kernels/kernel_table.h"
#include "kernels/self_check.h"

namespace {

using namespace mxort;

const Kernel* inner = nullptr;

// Computes all but the last panel.
void ForgetOnePanel(const MatMulArgs& args, Range panels, Range strips) {
  if (panels.end - panels.begin > 1 || panels.begin == 0) inner->compute(args, {panels.begin, panels.end - 1}, strips);
}
// Scales of the neighbouring block.
void ShiftScales(const MatMulArgs& args, Range panels, Range strips) {
  MatMulArgs wrong = args;
  wrong.packed = args.packed + 16;
  inner->compute(wrong, panels, strips);
}

}  // namespace

int main() {
  int passed = 0, failed = 0;
  const auto expect = [&](bool ok, const char* what, const char* name) {
    ++(ok ? passed : failed);
    if (!ok) std::fprintf(stderr, "FAILED %s: %s\n", name, what);
  };
  for (const Kernel* kernel : KernelTable()) {
    if (!kernel->cpu_has(DetectCpu())) continue;
    expect(SelfCheck(*kernel), "a right kernel fails", kernel->name);
    if (kernel->max_panel_rows({}) == 1) continue;  // the reference computes nothing itself
    inner = kernel;
    Kernel wrong = *kernel;
    wrong.compute = ForgetOnePanel;
    expect(!SelfCheck(wrong), "a kernel that forgets rows passes", kernel->name);
    wrong.compute = ShiftScales;
    expect(!SelfCheck(wrong), "a kernel that reads the wrong weights passes", kernel->name);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
