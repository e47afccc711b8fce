// A node's attributes, read with the C API. Like custom_op.cc this compiles against the headers of
// ONNX Runtime 1.21.
#ifndef MXORT_OPS_KERNEL_INFO_H_
#define MXORT_OPS_KERNEL_INFO_H_

#include <onnxruntime_c_api.h>

#include "kernels/kernel.h"
#include "ops/matmul_spec.h"

namespace mxort {

// The types of A, one operator each.
struct ElementType {
  ONNXTensorElementDataType onnx;
  DataType type;
};
inline constexpr ElementType kElementTypes[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, DataType::kFloat},
                                                {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, DataType::kFloat16},
                                                {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, DataType::kBFloat16}};

// Throws std::invalid_argument for an attribute that is missing or of a wrong type; values are for CheckAttributes.
MatMulAttributes ReadAttributes(const OrtApi& api, const OrtKernelInfo* info);

}  // namespace mxort

#endif  // MXORT_OPS_KERNEL_INFO_H_
