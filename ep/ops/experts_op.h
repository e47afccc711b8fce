// MoEMXFP4, a mixture of experts, as ONNX Runtime custom ops: one for each type of X and of the float vectors.
#ifndef MXORT_OPS_EXPERTS_OP_H_
#define MXORT_OPS_EXPERTS_OP_H_

#include <onnxruntime_c_api.h>

#include <vector>

#include "ops/matmul_inputs.h"

namespace mxort {

struct ExpertsOp : OrtCustomOp {
  const OrtApi* api;
  NodeType type;
};

std::vector<ExpertsOp> ExpertsOps(const OrtApi* api, uint32_t version);

}  // namespace mxort

#endif  // MXORT_OPS_EXPERTS_OP_H_
