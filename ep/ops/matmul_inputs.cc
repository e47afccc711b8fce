#include "ops/matmul_inputs.h"

#include <algorithm>

#include "kernels/activation.h"
#include "ops/ort_status.h"

namespace mxort {
std::vector<NodeType> NodeTypes() {
  std::vector<NodeType> types;
  for (const ElementType& a : kElementTypes) {
    types.push_back({a, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT});
    if (a.type != DataType::kFloat) types.push_back({a, a.onnx});
  }
  return types;
}

DataType DataTypeOf(Input input, ONNXTensorElementDataType type) {
  for (const ElementType& row : kElementTypes) {
    if (row.onnx == type) return row.type;
  }
  Fail(std::string("input ") + kInputNames[input], "element type " + std::to_string(type),
       "float, float16 or bfloat16");
}

const float* Widened(Input input, const Tensor& tensor, std::vector<float>* widened) {
  const DataType type = DataTypeOf(input, tensor.type);
  if (type == DataType::kFloat) return static_cast<const float*>(tensor.data);
  int64_t size = 1;
  for (const int64_t extent : tensor.shape) size *= extent;
  widened->resize(static_cast<size_t>(size));
  WidenRow(type, tensor.data, size, size, widened->data());
  return widened->data();
}

Tensor ReadInput(const OrtApi& api, const MatMulSpec& spec, size_t index, const OrtValue* value) {
  Tensor tensor = ReadTensor(api, value);
  CheckInput(spec, static_cast<Input>(index), tensor.shape);
  return tensor;
}

Inputs ReadConstants(const OrtApi& api, const MatMulSpec& spec, const OrtKernelInfo* info, size_t operand) {
  Inputs inputs;
  for (size_t i = kB; i < kInputs; ++i) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    Check(api, api.KernelInfoGetConstantInput_tensor(info, InputIndex(operand, i), &is_constant, &value));
    if (is_constant) inputs[i] = ReadInput(api, spec, i, value);
  }
  return inputs;
}

bool AllPresent(const Inputs& inputs) {
  return std::all_of(inputs.begin() + kB, inputs.end(), [](const Tensor& tensor) { return tensor.data != nullptr; });
}

Weights WeightsOf(const Inputs& inputs) {
  return {static_cast<const uint8_t*>(inputs[kB].data), static_cast<const uint8_t*>(inputs[kBScale].data)};
}

HostInputs::HostInputs(const Inputs& inputs)
    : host_{WeightsOf(inputs), Widened(kColumnScale, inputs[kColumnScale], &widened_[0]),
            Widened(kBias, inputs[kBias], &widened_[1])} {}

Call BeginCall(const OrtApi& api, const MatMulSpec& spec, OrtKernelContext* context) {
  Call call{InputValue(api, context, kA), {}, nullptr, 1};
  call.a = ReadTensor(api, call.a_value);
  const Shape shape = OutputShape(spec, call.a.shape);
  Check(api, api.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &call.y));
  for (size_t i = 0; i + 1 < shape.size(); ++i) call.rows *= shape[i];
  return call;
}

}  // namespace mxort
