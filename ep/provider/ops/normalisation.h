// The normalisations: where each has its inputs and outputs, and what a kernel is told of them. Also in front of
// products (fusion.h).
#ifndef MXORT_PROVIDER_OPS_NORMALISATION_H_
#define MXORT_PROVIDER_OPS_NORMALISATION_H_

#include "kernels/hip/args_rows.h"
#include "provider/node_kernel.h"

namespace mxort::provider {

// -1: it has none.
struct NormForm {
  const char* domain;
  const char* type;
  int since;
  bool rms;
  int skip, scale, shift, bias;
  int mean, inverse, sum;  // outputs

  float epsilon() const { return *domain ? 1e-12f : 1e-5f; }  // where the node says none
};
// Null: the operator is no normalisation.
const NormForm* NormFormOf(const std::string& domain, const std::string& type);

// data is null where the node has none.
struct NormInputs {
  Tensor x, skip, scale, shift, bias;
};

// Everything but outputs. `axis`: the first that is normalised. Throws std::invalid_argument where shapes disagree.
hip::NormArgs MakeNormArgs(const NormForm& form, const NormInputs& inputs, size_t axis, float epsilon);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_OPS_NORMALISATION_H_
