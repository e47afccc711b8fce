// A MatMulMXFP4 node of a session as ONNX Runtime's custom-op interface drives it, whatever computes it.
#ifndef MXORT_OPS_OPERATOR_KERNEL_H_
#define MXORT_OPS_OPERATOR_KERNEL_H_

#include <onnxruntime_c_api.h>

#include <array>
#include <string>

#include "kernels/kernel.h"
#include "ops/custom_op_base.h"
#include "ops/kernel_info.h"
#include "ops/matmul_spec.h"
#include "ops/ort_status.h"

namespace mxort {

class OperatorKernel {
 public:
  virtual ~OperatorKernel() = default;
  // Throws what Guard turns into a status.
  virtual void Compute(OrtKernelContext* context) const = 0;
  const std::string& where() const { return where_; }
  const OrtApi& api() const { return api_; }

 protected:
  using Inputs = std::array<Tensor, kInputs>;

  OperatorKernel(const OrtApi& api, DataType type, const OrtKernelInfo* info)
      : api_(api),
        type_(type),
        where_(std::string(kMatMulName) + " '" + NodeName(api, info) + "'"),
        spec_(CheckAttributes(ReadAttributes(api, info))) {}

  Tensor ReadChecked(size_t index, const OrtValue* value) const {
    Tensor tensor = ReadTensor(api_, value);
    CheckInput(spec_, static_cast<Input>(index), tensor.shape);
    return tensor;
  }

  // The inputs B to bias, data null where one is no constant. ONNX Runtime keeps constants as long as the session.
  Inputs ReadConstants(const OrtKernelInfo* info) const {
    Inputs inputs;
    for (size_t i = kB; i < kInputs; ++i) {
      int is_constant = 0;
      const OrtValue* value = nullptr;
      Check(api_, api_.KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value));
      if (is_constant) inputs[i] = ReadChecked(i, value);
    }
    return inputs;
  }

  static Weights WeightsOf(const Inputs& inputs) {
    return {static_cast<const uint8_t*>(inputs[kB].data), static_cast<const uint8_t*>(inputs[kBScale].data)};
  }

  // A, and Y made for it.
  struct Call {
    Tensor a;
    OrtValue* y;
    int64_t rows;
  };
  Call Begin(OrtKernelContext* context) const {
    Call call{ReadTensor(api_, InputValue(api_, context, kA)), nullptr, 1};
    const Shape shape = OutputShape(spec_, call.a.shape);
    Check(api_, api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &call.y));
    for (size_t i = 0; i + 1 < shape.size(); ++i) call.rows *= shape[i];
    return call;
  }

  const OrtApi& api_;
  const DataType type_;
  const std::string where_;
  const MatMulSpec spec_;
};

}  // namespace mxort

#endif  // MXORT_OPS_OPERATOR_KERNEL_H_
