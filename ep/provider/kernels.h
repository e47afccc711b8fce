// The provider's kernels as ONNX Runtime finds them: the rows of op_table.h, and the copies that it inserts between
// providers.
#ifndef MXORT_PROVIDER_KERNELS_H_
#define MXORT_PROVIDER_KERNELS_H_

#include <vector>

#include "provider/runtime.h"

namespace mxort::provider {

class Ep;
struct OpRow;

// The kernels that `ep`, which outlives them, creates.
class KernelRegistry {
 public:
  explicit KernelRegistry(Ep& ep);
  ~KernelRegistry();
  KernelRegistry(const KernelRegistry&) = delete;
  KernelRegistry& operator=(const KernelRegistry&) = delete;
  const OrtKernelRegistry* get() const { return registry_; }

  struct Entry {
    Ep* ep;
    const OpRow* row;
  };

 private:
  const OrtEpApi& ep_;
  OrtKernelRegistry* registry_ = nullptr;
  std::vector<Entry> entries_;  // what ONNX Runtime hands back when it makes a kernel
};

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_KERNELS_H_
