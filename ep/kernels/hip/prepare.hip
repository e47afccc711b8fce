// Kernels around the GEMM: A to records, the sum of split-K, and what follows a product.
#include "kernels/hip/activate.h"
#include "kernels/hip/prepare.h"
#include "kernels/hip/reduce.h"

using namespace mxort::hip;

#define MXORT_PREPARE(name, ...) \
  MXORT_KERNEL(256, 2) prepare_##name(PrepareArgs args) { Prepare<__VA_ARGS__>(args); }

MXORT_SINKS(MXORT_PREPARE)
#if defined(__gfx950__) || defined(__gfx942__)
MXORT_KERNEL(256, 4) reduce(ReduceArgs args) { Reduce(args); }
MXORT_KERNEL(256, 4) activate(ActivateArgs args) { Activate(args); }
#endif
