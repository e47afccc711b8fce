// What is written in plain float loops, compiled for each instruction set: one table of functions a set.
#ifndef MXORT_KERNELS_VECTOR_FUNCTIONS_H_
#define MXORT_KERNELS_VECTOR_FUNCTIONS_H_

#include <string>

#include "kernels/attention.h"
#include "kernels/epilogue.h"
#include "kernels/kernel.h"
#include "kernels/quantize.h"
#include "kernels/solve.h"

namespace mxort {

struct VectorFunctions {
  AttendKeys attend_keys;
  Activate activate;
  QuantizeRange quantize;
  SumRowsRange sum_rows;
  PanelRange gptq_panel, descend_panel;
};
extern const VectorFunctions kPortableFunctions, kAvx2Functions, kAvx512Functions;
void AttendKeysVnni(const AttentionTile& tile);  // attend_keys where AVX-512 has VNNI

// Those for a CPU; `first` is a row of the kernel table (KernelOverride) that their instructions are not to go beyond.
const VectorFunctions& SelectFunctions(const CpuFeatures& cpu, const std::string& first);

}  // namespace mxort

#endif  // MXORT_KERNELS_VECTOR_FUNCTIONS_H_
