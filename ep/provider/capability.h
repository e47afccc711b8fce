// Which nodes of a graph this provider takes.
#ifndef MXORT_PROVIDER_CAPABILITY_H_
#define MXORT_PROVIDER_CAPABILITY_H_

#include "provider/runtime.h"

namespace mxort::provider {

class Ep;

// Adds to `support` the nodes that a row of op_table.h computes, apart from those that are cheaper on the CPU because
// everything they read is there (arithmetic on shapes), and says at verbose level why others of the operators in the
// table are left to the CPU.
void ClaimNodes(const Ep& ep, const OrtGraph* graph, OrtEpGraphSupportInfo* support, const Logger& logger);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_CAPABILITY_H_
