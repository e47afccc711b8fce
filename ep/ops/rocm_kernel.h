// MatMulMXFP4 for ONNX Runtime's own ROCMExecutionProvider (onnxruntime-rocm 1.22, the last release that has it): the
// kernel of a custom op, on the device layer. Never run on that provider; see docs/mi355x.md.
#ifndef MXORT_OPS_ROCM_KERNEL_H_
#define MXORT_OPS_ROCM_KERNEL_H_

#include <memory>

#include "ops/operator_kernel.h"

namespace mxort {

inline constexpr const char* kRocmProvider = "ROCMExecutionProvider";

// Packs and uploads the weights to the provider's device. Throws std::invalid_argument where an input other than A is
// no constant, OrtError for what the device says.
std::unique_ptr<OperatorKernel> MakeRocmKernel(const OrtApi& api, DataType type, const OrtKernelInfo* info);

}  // namespace mxort

#endif  // MXORT_OPS_ROCM_KERNEL_H_
