// A MatMulMXFP4, 6 or 8 node of a session as ONNX Runtime's custom-op interface drives it, whatever computes it.
#ifndef MXORT_OPS_OPERATOR_KERNEL_H_
#define MXORT_OPS_OPERATOR_KERNEL_H_

#include <onnxruntime_c_api.h>

#include <string>

#include "kernels/kernel.h"
#include "ops/custom_op_base.h"
#include "ops/matmul_inputs.h"
#include "ops/matmul_spec.h"

namespace mxort {

class OperatorKernel {
 public:
  virtual ~OperatorKernel() = default;
  // Throws what Guard turns into a status.
  virtual void Compute(OrtKernelContext* context) const = 0;
  const std::string& where() const { return where_; }
  const OrtApi& api() const { return api_; }

 protected:
  OperatorKernel(const OrtApi& api, const WeightOperator& op, DataType type, const OrtKernelInfo* info)
      : api_(api),
        type_(type),
        where_(op.name + " '" + NodeName(api, info) + "'"),
        spec_(CheckAttributes(ReadAttributes(KernelAttributes(api, info), op))) {}

  const OrtApi& api_;
  const DataType type_;
  const std::string where_;
  const MatMulSpec spec_;
};

}  // namespace mxort

#endif  // MXORT_OPS_OPERATOR_KERNEL_H_
