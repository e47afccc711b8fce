// The execution provider of a session without a GPU.
#ifndef MXORT_PROVIDER_HOST_EP_H_
#define MXORT_PROVIDER_HOST_EP_H_

#include "provider/memory.h"
#include "provider/runtime.h"

namespace mxort::provider {

// What ReleaseEp ends: OrtEp itself has no destructor.
struct OwnedEp : OrtEp {
  OwnedEp() : OrtEp{} {}
  virtual ~OwnedEp() = default;
  OwnedEp(const OwnedEp&) = delete;
  OwnedEp& operator=(const OwnedEp&) = delete;
};

// Takes no node: the operators' domain comes with the library, and their kernels are those of the CPU. It is there for
// programs that can name a provider but no library of operators, and for those that are the same with and without a
// GPU.
class HostEp : public OwnedEp {
 public:
  HostEp(const Runtime& runtime, LiveCount live);
  ~HostEp() override { --*live_; }

 private:
  const char* const name_;
  const LiveCount live_;
};

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_HOST_EP_H_
