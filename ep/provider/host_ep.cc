#include "provider/host_ep.h"

#include <utility>

namespace mxort::provider {

HostEp::HostEp(const Runtime& runtime, LiveCount live) : name_(runtime.name), live_(std::move(live)) {
  ort_version_supported = runtime.version;
  GetName = [](const OrtEp* self) noexcept { return static_cast<const HostEp*>(self)->name_; };
  GetCapability = [](OrtEp*, const OrtGraph*, OrtEpGraphSupportInfo*) noexcept -> OrtStatus* { return nullptr; };
  ++*live_;
}

}  // namespace mxort::provider
