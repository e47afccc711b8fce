// A normalisation and the products with quantised weights that read it, whose kernels normalise the rows that they
// prepare (kernels/hip/direct.h). Constants are packed when a group is compiled. Where a run has more rows than one
// kernel takes, the normalisation is launched first.
#ifndef MXORT_PROVIDER_NORMED_PRODUCTS_H_
#define MXORT_PROVIDER_NORMED_PRODUCTS_H_

#include <memory>
#include <vector>

#include "provider/fusion.h"

namespace mxort::provider {

std::vector<std::vector<size_t>> FindNormedProducts(const std::vector<const NodeView*>& taken);

std::unique_ptr<FusedNode> MakeNormedProducts(Ep& ep, const FusedGraph& graph);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_NORMED_PRODUCTS_H_
