// Which kernels compute a problem on a device, and how they are launched: a pure function, and the table it chooses
// from. Knows neither ONNX Runtime nor HIP; ep/device launches what this says.
#ifndef MXORT_KERNELS_HIP_SELECT_H_
#define MXORT_KERNELS_HIP_SELECT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/hip/args.h"
#include "kernels/hip/layout.h"
#include "kernels/kernel.h"

namespace mxort::hip {

// What selection needs to know of a device.
struct Device {
  const char* arch = "gfx950";  // "gfx950", "gfx942"
  int compute_units = 256;
  uint64_t disabled = 0;  // bit i: row i of GemmRows is not used (it failed its self-check)
};

// How A is prepared: which kernel writes its records, in which format, as a sum of how many. A kernel that prepares its
// rows itself does the same.
struct Preparation {
  const char* kernel;
  Operand operand;
  int terms;
};

// That of A for a product with these weights.
Preparation PreparationFor(const Device& device, const MatMulSpec& spec, DataType type);

// One row of the table.
struct GemmRow {
  const char* name;    // of the kernel in the code object, unique per architecture
  const char* object;  // source file of the code object: gemm_mx, gemm_bf16, gemm_byte, gemm_direct
  const char* arch;    // nullptr: all
  Operand operand;     // format of A's records
  int rows, columns;   // tile
  int threads;
  int steps;  // of 128 k in a stage: the last one may be half used
  bool skinny;
  // Bound of one tile-step (rows x columns x 128 k): matrix clocks a compute unit, and what its loads take at the least
  // (docs/mi355x.md, "Performance model").
  int clocks;
  WeightCode weights = WeightCode::kFp4;
  bool direct = false;  // takes A as it is and computes all of K: one launch (direct.h)
};
const GemmRow* GemmRows(size_t* count);

struct Grid {
  unsigned x, y, z;
};

// Most rows of A whose preparation fits the LDS of a direct kernel.
int64_t DirectRows(Operand operand, unsigned steps, unsigned terms);

// Everything to launch a product with quantised weights, apart from pointers.
struct Plan {
  const GemmRow* gemm = nullptr;  // null: no kernel for this device
  Preparation prepare{};
  const char* prepare_object = "prepare";
  int emulated = kNoElement;  // Operand whose quantised values bf16 records are
  unsigned steps = 0, terms = 1, steps_per_split = 0, splits = 1, tiles_m = 0, tiles_n = 0;
  Grid prepare_grid{}, gemm_grid{}, reduce_grid{};  // x = 0 where it is not needed
  unsigned prepare_threads = 256, reduce_threads = 256;
  size_t activation_bytes = 0, partial_bytes = 0;  // workspace
};

// `name`: that kernel or an empty plan (for tests, self-check and the override variable); nullptr: the one with the
// lowest bound.
Plan Select(const Device& device, const MatMulSpec& spec, DataType type, int64_t m, const char* name = nullptr);

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_SELECT_H_
