// The entry points by which ONNX Runtime loads this library as an execution provider (cmake/exports.map). In a file of
// its own: library.cc must compile against headers that have no execution providers.
#include "provider/factory.h"
#include "provider/runtime.h"

#define MXORT_EXPORT extern "C" __attribute__((visibility("default")))

MXORT_EXPORT OrtStatus* CreateEpFactories(const char* registration, const OrtApiBase* base, const OrtLogger* logger,
                                          OrtEpFactory** factories, size_t max_factories,
                                          size_t* num_factories) noexcept {
  const OrtApi* oldest = base->GetApi(1);  // CreateStatus has been there from the start
  return mxort::Guard(*oldest, mxort::provider::kEpName, [&] {
    if (max_factories < 1) throw std::invalid_argument("got no room for a factory, expected room for 1");
    factories[0] = mxort::provider::MakeFactory(mxort::provider::MakeRuntime(base, registration), base, logger);
    *num_factories = 1;
  });
}

MXORT_EXPORT OrtStatus* ReleaseEpFactory(OrtEpFactory* factory) noexcept {
  mxort::provider::ReleaseFactory(factory);
  return nullptr;
}
