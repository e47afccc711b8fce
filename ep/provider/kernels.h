// The provider's kernels: MatMulMXFP4, and the copies that ONNX Runtime inserts between providers.
#ifndef MXORT_PROVIDER_KERNELS_H_
#define MXORT_PROVIDER_KERNELS_H_

#include <memory>

#include "provider/runtime.h"

namespace mxort::provider {

class Ep;

struct KernelRegistryDeleter {
  const OrtEpApi* ep;
  void operator()(OrtKernelRegistry* registry) const { ep->ReleaseKernelRegistry(registry); }
};
using KernelRegistryPtr = std::unique_ptr<OrtKernelRegistry, KernelRegistryDeleter>;

// The kernels that `ep`, which outlives them, creates.
KernelRegistryPtr MakeKernelRegistry(Ep& ep);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_KERNELS_H_
