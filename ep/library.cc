// The entry points of libmxort.so. cmake/exports.map lists every symbol that leaves the library.
#include <onnxruntime_c_api.h>

#include "ops/custom_op.h"
#include "ops/ort_status.h"

#define MXORT_EXPORT extern "C" __attribute__((visibility("default")))

MXORT_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) noexcept {
  const OrtApi* oldest = base->GetApi(1);  // CreateStatus has been there from the start
  return mxort::Guard(*oldest, "mxort", [&] {
    const OrtApi* api = nullptr;
    OrtCustomOpDomain* domain = mxort::CustomOpDomain(base, &api);
    mxort::Check(*api, api->AddCustomOpDomain(options, domain));
  });
}
