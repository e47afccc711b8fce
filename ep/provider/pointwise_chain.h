// Nodes that compute element by element what others of them read, in one launch (device/pointwise.h), whose steps they
// are: results have the bits of the nodes apart. One of them alone gives a result that is read elsewhere.
#ifndef MXORT_PROVIDER_POINTWISE_CHAIN_H_
#define MXORT_PROVIDER_POINTWISE_CHAIN_H_

#include <memory>
#include <vector>

#include "provider/fusion.h"

namespace mxort::provider {

// Among the nodes that are in no group yet.
std::vector<std::vector<size_t>> FindPointwiseChains(const std::vector<const NodeView*>& taken,
                                                     const std::vector<bool>& grouped);

std::unique_ptr<FusedNode> MakePointwiseChain(Ep& ep, const FusedGraph& graph);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_POINTWISE_CHAIN_H_
