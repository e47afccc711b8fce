// Which kernels compute a mixture of experts on a device, and how they are launched: as select.h for one product.
#ifndef MXORT_KERNELS_HIP_SELECT_EXPERTS_H_
#define MXORT_KERNELS_HIP_SELECT_EXPERTS_H_

#include "kernels/experts.h"
#include "kernels/hip/select.h"

namespace mxort::hip {

// A row of the table: how both products are computed.
struct ExpertsRow {
  const char* name;    // unique per architecture
  const char* object;  // source file of the code object of the products: experts_mx, experts_bf16
  const char* arch;    // nullptr: all
  Operand operand;
  const char *first, *second;  // kernels of the products
  int height;                  // slots of a tile (args_experts.h); kFewRows: at most as many rows
  int columns;
  int clocks;  // as GemmRow
};
const ExpertsRow* ExpertsRows(size_t* count);

// Everything to launch for some rows, apart from pointers. Grids depend on the number of rows alone, never on what the
// router says, so that a recorded launch may be replayed with other logits.
struct ExpertsPlan {
  const ExpertsRow* row = nullptr;  // null: no kernel for this device
  bool few = false;                 // routed and prepared, first, prepared, second: four launches, else seven
  Preparation first{}, second{};    // of X, and of what lies between the products
  unsigned steps[2] = {}, tiles_n[2] = {};
  unsigned tiles = 0, slots = 0;                  // at most
  unsigned wave_rows = 0, waves = 0, groups = 0;  // of routing many rows: workgroups of `arrange`
  unsigned group_waves = 0;
  Grid prepare_grid[2] = {}, product_grid[2] = {};
  size_t records_bytes[2] = {}, products_bytes = 0;  // workspace; the larger of both products
};

// `disabled`: bit i, row i of ExpertsRows is not used. `name`: that row or an empty plan.
ExpertsPlan SelectExperts(const Device& device, const ExpertsSpec& spec, DataType type, int64_t rows,
                          const char* name = nullptr);

// Rows that one launch takes: what bounds the workspace.
int64_t ExpertsLaunchRows(const ExpertsSpec& spec);

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_SELECT_EXPERTS_H_
