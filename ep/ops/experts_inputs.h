// The weights of a MoEMXFP4 node, read with the C API. Compiles against the headers of ONNX Runtime 1.21.
#ifndef MXORT_OPS_EXPERTS_INPUTS_H_
#define MXORT_OPS_EXPERTS_INPUTS_H_

#include <onnxruntime_c_api.h>

#include <array>

#include "ops/custom_op_base.h"
#include "ops/experts_spec.h"

namespace mxort {

// By product and part; data null: not known.
using ExpertsTensors = std::array<std::array<Tensor, kParts>, kProducts>;

// Those that are constants which the node sees when it is made. ONNX Runtime keeps them as long as the session.
ExpertsTensors ReadExpertsConstants(const OrtApi& api, const OrtKernelInfo* info);
// Those that are not known yet, in a call.
void ReadExpertsInputs(const OrtApi& api, const OrtKernelContext* context, ExpertsTensors* tensors);

bool AllPresent(const ExpertsTensors& tensors);
ExpertsShapes ShapesOf(const ExpertsTensors& tensors);
Weights WeightsOf(const std::array<Tensor, kParts>& product);

}  // namespace mxort

#endif  // MXORT_OPS_EXPERTS_INPUTS_H_
