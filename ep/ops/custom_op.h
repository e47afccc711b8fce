// The operator as ONNX Runtime custom ops, one for each type of A.
#ifndef MXORT_OPS_CUSTOM_OP_H_
#define MXORT_OPS_CUSTOM_OP_H_

#include <onnxruntime_c_api.h>

namespace mxort {

// The domain with all operators, for the runtime that `base` belongs to. Made once per runtime and never destroyed:
// ONNX Runtime keeps pointers into it for as long as any session lives. Throws std::runtime_error when the runtime is
// too old.
OrtCustomOpDomain* CustomOpDomain(const OrtApiBase* base, const OrtApi** api);

}  // namespace mxort

#endif  // MXORT_OPS_CUSTOM_OP_H_
