// GatherMXFP4, MXFP6, MXFP8 and MXINT8, rows of an embedding table, as ONNX Runtime custom ops: of each one for each
// type of indices and of multiplier and rows.
#ifndef MXORT_OPS_GATHER_OP_H_
#define MXORT_OPS_GATHER_OP_H_

#include <onnxruntime_c_api.h>

#include <vector>

#include "ops/matmul_inputs.h"

namespace mxort {

struct GatherOp : OrtCustomOp {
  const OrtApi* api;
  const WeightOperator* what;
  ONNXTensorElementDataType index_type;
  ElementType row_type;
};

std::vector<GatherOp> GatherOps(const OrtApi* api, uint32_t version);

}  // namespace mxort

#endif  // MXORT_OPS_GATHER_OP_H_
