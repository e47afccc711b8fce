// The inputs of a MatMulMXFP4, 6 or 8 node, read with the C API. Like custom_op.cc this compiles against the headers of
// ONNX Runtime 1.21.
#ifndef MXORT_OPS_MATMUL_INPUTS_H_
#define MXORT_OPS_MATMUL_INPUTS_H_

#include <onnxruntime_c_api.h>

#include <array>
#include <cstdint>
#include <vector>

#include "device/device_weights.h"
#include "kernels/kernel.h"
#include "ops/custom_op_base.h"
#include "ops/matmul_spec.h"

namespace mxort {

// The types of A.
struct ElementType {
  ONNXTensorElementDataType onnx;
  DataType type;
};
inline constexpr ElementType kElementTypes[] = {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, DataType::kFloat},
                                                {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, DataType::kFloat16},
                                                {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, DataType::kBFloat16}};

// The types of an op: of A and Y, and of column_scale and bias. A tool that makes a model float16 casts every float
// tensor of it, these too.
struct NodeType {
  ElementType a;
  ONNXTensorElementDataType vectors;
};
std::vector<NodeType> NodeTypes();

// Throws std::invalid_argument for a type that the operator does not take.
DataType DataTypeOf(Input input, ONNXTensorElementDataType type);

// A tensor's elements as floats: its own, or in `widened`.
const float* Widened(Input input, const Tensor& tensor, std::vector<float>* widened);

using Inputs = std::array<Tensor, kInputs>;

// An input other than A, its shape checked.
Tensor ReadInput(const OrtApi& api, const MatMulSpec& spec, size_t index, const OrtValue* value);

// The inputs B to bias of an operand, data null where one is no constant that the node sees when it is made. ONNX
// Runtime keeps constants as long as the session.
Inputs ReadConstants(const OrtApi& api, const MatMulSpec& spec, const OrtKernelInfo* info, size_t operand = 0);
bool AllPresent(const Inputs& inputs);  // B to bias
Weights WeightsOf(const Inputs& inputs);

// The inputs B to bias in host memory as the kernels take them: column_scale and bias widened to float where the model
// has them in A's type. The inputs must outlive it.
class HostInputs {
 public:
  explicit HostInputs(const Inputs& inputs);
  HostInputs(const HostInputs&) = delete;
  HostInputs& operator=(const HostInputs&) = delete;
  const device::HostWeights& get() const { return host_; }

 private:
  std::array<std::vector<float>, 2> widened_;
  device::HostWeights host_;
};

// A, and Y made for it.
struct Call {
  const OrtValue* a_value;
  Tensor a;
  OrtValue* y;
  int64_t rows;
};
Call BeginCall(const OrtApi& api, const MatMulSpec& spec, OrtKernelContext* context);

}  // namespace mxort

#endif  // MXORT_OPS_MATMUL_INPUTS_H_
