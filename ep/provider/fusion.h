// Nodes that are one launch together, claimed as one node:
//
//   ClaimNodes --FindFusions--> groups --AddNodesToFuse--> ONNX Runtime --Compile--> FusedNode, one a group
//
// ONNX Runtime knows nothing of what lies between a group's nodes. A kind of group is a file: which nodes
// (normed_products.h, pointwise_chain.h), and the FusedNode that computes them.
#ifndef MXORT_PROVIDER_FUSION_H_
#define MXORT_PROVIDER_FUSION_H_

#include <memory>
#include <string>
#include <vector>

#include "provider/node_kernel.h"
#include "provider/node_view.h"

namespace mxort::provider {

struct FusedGroup {
  std::vector<size_t> nodes;
  bool keeps_constants;  // the node that stands for it has them and does not want them as inputs
};

// The groups among nodes that the provider takes, in topological order, as indices into `taken`. No node is in two.
std::vector<FusedGroup> FindFusions(const std::vector<const NodeView*>& taken);

// A node that stands for a group.
class FusedNode : public OrtNodeComputeInfo {
 public:
  virtual ~FusedNode() = default;
  FusedNode(const FusedNode&) = delete;
  FusedNode& operator=(const FusedNode&) = delete;

 protected:
  FusedNode(Ep& ep, std::string where);
  // As NodeKernel::Run.
  virtual void Run(NodeCall& call) const = 0;

  Ep& ep() const { return ep_; }

 private:
  Ep& ep_;
  const std::string where_;
};

// What a group is made of when it is compiled: its nodes, and the names of what the node that stands for it has.
struct FusedGraph {
  FusedGraph(const Runtime& runtime, const OrtGraph* graph, const OrtNode* fused);

  std::vector<NodeView> nodes;
  std::vector<std::string> inputs, outputs;
  static int IndexOf(const std::vector<std::string>& names, const std::string& name);  // -1: it is none of them
};

// Throws where a constant cannot be read or packed.
std::unique_ptr<FusedNode> MakeFusedNode(Ep& ep, const FusedGraph& graph);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_FUSION_H_
