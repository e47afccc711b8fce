// The factory of execution providers: which GPUs there are, and what ONNX Runtime needs of them outside of sessions.
#ifndef MXORT_PROVIDER_FACTORY_H_
#define MXORT_PROVIDER_FACTORY_H_

#include "provider/runtime.h"

namespace mxort::provider {

// `base` for the operators' domain, which knows each runtime by it.
OrtEpFactory* MakeFactory(const Runtime& runtime, const OrtApiBase* base, const OrtLogger* logger);
void ReleaseFactory(OrtEpFactory* factory);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_FACTORY_H_
