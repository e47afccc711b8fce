// What a product with quantised weights is made of, whether it is a node of its own or one of several (fusion.h).
#ifndef MXORT_PROVIDER_OPS_QUANTISED_PRODUCT_H_
#define MXORT_PROVIDER_OPS_QUANTISED_PRODUCT_H_

#include <memory>
#include <string>
#include <vector>

#include "device/matmul_plan.h"
#include "ops/matmul_inputs.h"
#include "ops/matmul_spec.h"
#include "provider/ep.h"

namespace mxort::provider {

// Null: the operator is none of MatMulMX*, FusedMatMulMX*, GatedMatMulMX*.
const WeightOperator* QuantisedProductNamed(const std::string& domain, const std::string& type);

// `operands`: the inputs B to bias of each, in host memory while the call lasts.
std::unique_ptr<const device::MatMulPlan> MakePlan(const Ep& ep, const WeightOperator& op, const MatMulSpec& spec,
                                                   Activation activation, DataType type,
                                                   const std::vector<Inputs>& operands);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_OPS_QUANTISED_PRODUCT_H_
