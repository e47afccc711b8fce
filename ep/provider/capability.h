// Which nodes of a graph this provider takes.
#ifndef MXORT_PROVIDER_CAPABILITY_H_
#define MXORT_PROVIDER_CAPABILITY_H_

#include <functional>
#include <string>

#include "kernels/kernel.h"
#include "provider/runtime.h"

namespace mxort::provider {

// Why no kernel of a device computes this; empty: one does.
using WhyUnsupported = std::function<std::string(const MatMulSpec&, DataType)>;

// Adds to `support` exactly the MatMulMXFP4 nodes whose weights are constants and which a kernel supports, and says at
// verbose level why others of them are left to the CPU. A node that is not valid is left too: the CPU operator reports
// what is wrong with it.
void ClaimNodes(const Runtime& runtime, const OrtGraph* graph, OrtEpGraphSupportInfo* support, const Logger& logger,
                const WhyUnsupported& why_unsupported);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_CAPABILITY_H_
