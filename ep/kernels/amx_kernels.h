// The kernels of the tile unit, and how products are cut for them.
#ifndef MXORT_KERNELS_AMX_KERNELS_H_
#define MXORT_KERNELS_AMX_KERNELS_H_

#include "kernels/kernel.h"

namespace mxort {

extern const Kernel kAmx, kAmxMxint8;

// How a product is cut for a kernel, so that what is read again and again stays in a core's caches. As it stands: for
// kernels that keep their sums in registers.
struct Blocking {
  int64_t prepared_bytes = 256 * 1024;  // of the panels of a task: they stay in the second-level cache
  int64_t strips = 1;                   // tasks are of multiples of so many
  int64_t rows = 1;                     // panels are of multiples of so many
  int64_t panels = 1;                   // that are computed before an epilogue: weights are decoded once for them
};
extern const Blocking kTileBlocking;

}  // namespace mxort

#endif  // MXORT_KERNELS_AMX_KERNELS_H_
