#include "provider/host_ep.h"

#include <utility>

namespace mxort::provider {

HostEp::HostEp(const Runtime& runtime, LiveCount live) : live_(std::move(live)) {
  ort_version_supported = runtime.version;
  GetName = [](const OrtEp*) noexcept { return kEpName; };
  GetCapability = [](OrtEp*, const OrtGraph*, OrtEpGraphSupportInfo*) noexcept -> OrtStatus* { return nullptr; };
  ++*live_;
}

}  // namespace mxort::provider
