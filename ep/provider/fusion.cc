#include "provider/fusion.h"

#include <algorithm>
#include <utility>

#include "provider/normed_products.h"
#include "provider/op_table.h"
#include "provider/ops/normalisation.h"
#include "provider/pointwise_chain.h"

namespace mxort::provider {
namespace {

// What NodeCall asks of a row: nothing is on the host.
const OpRow& FusedRow() {
  static const OpRow row{kDomain, "fused", 1, 1, {}, nullptr};
  return row;
}

}  // namespace

std::vector<FusedGroup> FindFusions(const std::vector<const NodeView*>& taken) {
  std::vector<FusedGroup> groups;
  std::vector<bool> grouped(taken.size(), false);
  const auto add = [&](std::vector<std::vector<size_t>> found, bool keeps_constants) {
    for (std::vector<size_t>& nodes : found) {
      for (const size_t i : nodes) grouped[i] = true;
      groups.push_back({std::move(nodes), keeps_constants});
    }
  };
  add(FindNormedProducts(taken), true);
  add(FindPointwiseChains(taken, grouped), false);
  return groups;
}

FusedNode::FusedNode(Ep& ep, std::string where) : OrtNodeComputeInfo{}, ep_(ep), where_(std::move(where)) {
  ort_version_supported = ep.runtime().version;
  CreateState = [](OrtNodeComputeInfo* self, OrtNodeComputeContext*, void** state) noexcept -> OrtStatus* {
    *state = self;  // nothing changes from run to run
    return nullptr;
  };
  ReleaseState = [](OrtNodeComputeInfo*, void*) noexcept {};
  Compute = [](OrtNodeComputeInfo* self, void*, OrtKernelContext* context) noexcept -> OrtStatus* {
    const auto& node = *static_cast<const FusedNode*>(self);
    OrtStatus* status = Guard(*node.ep_.runtime().api, node.where_, [&] {
      NodeCall call(node.ep_, FusedRow(), context);
      node.Run(call);
    });
    if (!status || !node.ep_.RunFailed()) return status;
    node.ep_.runtime().api->ReleaseStatus(status);
    return nullptr;
  };
}

FusedGraph::FusedGraph(const Runtime& runtime, const OrtGraph* graph, const OrtNode* fused) {
  const NodeView of_runtime(runtime, fused);
  for (size_t i = 0; i < of_runtime.Inputs(); ++i) inputs.push_back(of_runtime.InputName(i));
  for (size_t i = 0; i < of_runtime.Outputs(); ++i) outputs.push_back(of_runtime.OutputName(i));
  size_t count = 0;
  runtime.Check(runtime.api->Graph_GetNumNodes(graph, &count));
  std::vector<const OrtNode*> all(count);
  runtime.Check(runtime.api->Graph_GetNodes(graph, all.data(), count));
  for (const OrtNode* each : all) nodes.emplace_back(runtime, each);
}

int FusedGraph::IndexOf(const std::vector<std::string>& names, const std::string& name) {
  const auto it = std::find(names.begin(), names.end(), name);
  return it == names.end() || name.empty() ? -1 : static_cast<int>(it - names.begin());
}

std::unique_ptr<FusedNode> MakeFusedNode(Ep& ep, const FusedGraph& graph) {
  const bool normed = std::any_of(graph.nodes.begin(), graph.nodes.end(), [](const NodeView& node) {
    return NormFormOf(node.domain(), node.type()) != nullptr;
  });
  return normed ? MakeNormedProducts(ep, graph) : MakePointwiseChain(ep, graph);
}

}  // namespace mxort::provider
