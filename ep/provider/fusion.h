// Nodes that are one launch together: a normalisation and the products with quantised weights that read it, whose
// kernels normalise the rows that they prepare (kernels/hip/direct.h).
//
//   ClaimNodes --FindFusions--> groups --AddNodesToFuse--> ONNX Runtime --Compile--> FusedNode, one a group
//
// A group is claimed as one node: its constants are packed when it is compiled, and ONNX Runtime then knows nothing of
// what lies between its nodes. Where a run has more rows than one kernel takes, the normalisation is launched first.
#ifndef MXORT_PROVIDER_FUSION_H_
#define MXORT_PROVIDER_FUSION_H_

#include <memory>
#include <string>
#include <vector>

#include "device/rows.h"
#include "provider/node_view.h"
#include "provider/ops/normalisation.h"
#include "provider/ops/quantised_product.h"

namespace mxort::provider {

// The groups among nodes that the provider takes, each as indices into `taken`, the normalisation first.
std::vector<std::vector<size_t>> FindFusions(const std::vector<const NodeView*>& taken);

class FusedNode : public OrtNodeComputeInfo {
 public:
  // Of a group's graph and the node that stands for it. Throws where a constant cannot be read or packed.
  FusedNode(Ep& ep, const OrtGraph* graph, const OrtNode* fused);

 private:
  // A tensor of the normalisation: an input of the fused node, or a constant, which it keeps on the device.
  struct Operand {
    int input = -1;
    device::Buffer memory;
    Tensor constant;
  };
  struct Product {
    MatMulSpec spec;
    std::unique_ptr<const device::MatMulPlan> plan;
    int output;
    std::string where;
  };
  void AddOperand(const NodeView& norm, int index, const std::vector<std::string>& inputs, Operand* operand);
  void AddProduct(const NodeView& node, const std::vector<std::string>& outputs);
  Tensor Get(const NodeCall& call, const Operand& operand) const;
  void Run(NodeCall& call) const;

  Ep& ep_;
  std::string where_;
  const NormForm* form_ = nullptr;
  float epsilon_ = 0;
  Operand x_, skip_, scale_, shift_, bias_;
  int y_ = -1, sum_ = -1;  // outputs of the fused node; -1: nobody asks
  device::RowKernel norm_;
  std::vector<Product> products_;
};

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_FUSION_H_
