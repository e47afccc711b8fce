// A mixture of experts around its products: routing, records of both operands, the sum of many rows.
#include "kernels/hip/experts_prepare.h"

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

MXORT_KERNEL(256, 2) experts_route(RouteArgs args) { Route(args); }
MXORT_KERNEL(256, 2) experts_arrange(ArrangeArgs args) { Arrange(args); }
MXORT_KERNEL(256, 4) experts_combine(CombineArgs args) { Combine(args); }

// Where routing's LDS is half of what there is (gfx942) one workgroup has it.
#define MXORT_EXPERTS_PREPARE(name, ...)                                                              \
  MXORT_KERNEL(256, 1) experts_few_##name(RoutePrepareArgs args) { RoutePrepare<__VA_ARGS__>(args); } \
  MXORT_KERNEL(256, 2) experts_gather_##name(GatherArgs args) { GatherPrepare<__VA_ARGS__>(args); }   \
  MXORT_KERNEL(256, 2) experts_inner_##name(InnerArgs args) { InnerPrepare<__VA_ARGS__>(args); }
MXORT_SINKS(MXORT_EXPERTS_PREPARE)
#endif
