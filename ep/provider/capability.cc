#include "provider/capability.h"

#include <algorithm>
#include <queue>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "provider/ep.h"
#include "provider/fusion.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

// A tensor that a node on the CPU may as well read from a constant: ONNX Runtime's own providers draw the line here.
constexpr int64_t kSmallConstant = 100;

struct Candidate {
  NodeView view;
  const OpRow* row = nullptr;  // null: not for this provider
};

const OpRow* FindRow(const Ep& ep, const NodeView& view) {
  if (!view.Free() || (ep.options().only_mx && view.domain() != kDomain)) return nullptr;
  for (const OpRow& row : OpTable()) {
    if (view.type() != row.type || view.domain() != row.domain) continue;
    const int version = view.SinceVersion();
    if (version >= row.since && version <= row.until) return &row;
  }
  return nullptr;
}

// The type whose kernels a node launches: that of its first input of floats, else float.
DataType FloatTypeOf(const NodeView& view) {
  for (size_t i = 0; i < view.Inputs(); ++i) {
    if (!view.Has(i)) continue;
    switch (view.InputType(i)) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
        return DataType::kFloat;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        return DataType::kFloat16;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
        return DataType::kBFloat16;
      default:
        break;
    }
  }
  return DataType::kFloat;
}

// Empty: the provider can compute the node.
std::string WhyLeft(const Ep& ep, OrtEpGraphSupportInfo* support, const NodeView& view, const OpRow& row) {
  try {
    if (row.why_left) {
      const std::string why = row.why_left(ep, view);
      if (!why.empty()) return why;
    }
    const OrtKernelDef* kernel = nullptr;
    ep.runtime().Check(ep.runtime().ep->EpGraphSupportInfo_LookUpKernel(support, view.node(), &kernel));
    if (!kernel) return "no kernel has its types";
    return row.kernels ? ep.WhyWrong(row.kernels, FloatTypeOf(view)) : "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

// Nodes that ONNX Runtime's rule gives to the CPU: everything they read is on the host already, as a result of a node
// there, a small constant or an input of the graph, and nothing is of a type that the CPU is slow with. Results of such
// nodes are on the host too, so the rule spreads from Shape through the arithmetic behind it.
class CpuPreferred {
 public:
  CpuPreferred(const Runtime& runtime, const OrtGraph* graph, const std::vector<Candidate>& nodes) : nodes_(nodes) {
    size_t count = 0;
    runtime.Check(runtime.api->Graph_GetNumInputs(graph, &count));
    std::vector<const OrtValueInfo*> inputs(count);
    runtime.Check(runtime.api->Graph_GetInputs(graph, inputs.data(), count));
    for (const OrtValueInfo* input : inputs) {
      const char* name = "";
      runtime.Check(runtime.api->GetValueInfoName(input, &name));
      on_host_or_input_.insert(name);
    }
    for (size_t i = 0; i < nodes.size(); ++i) {
      for (size_t k = 0; k < nodes[i].view.Inputs(); ++k) {
        if (nodes[i].view.Has(k)) consumers_[nodes[i].view.InputName(k)].push_back(i);
      }
    }
  }

  std::unordered_set<size_t> Find() {
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!nodes_[i].row) continue;
      for (const size_t output : nodes_[i].row->host_outputs) AddHostValue(i, output);
    }
    std::unordered_set<size_t> found, visited;
    while (!waiting_.empty()) {
      const size_t i = waiting_.top();
      waiting_.pop();
      if (!visited.insert(i).second) continue;
      if (nodes_[i].row && !ReadsOnlyTheHost(nodes_[i])) continue;
      if (nodes_[i].row) found.insert(i);
      for (size_t output = 0; output < nodes_[i].view.Outputs(); ++output) AddHostValue(i, output);
    }
    return found;
  }

 private:
  void AddHostValue(size_t node, size_t output) {
    if (!nodes_[node].view.HasOutput(output)) return;
    const std::string name = nodes_[node].view.OutputName(output);
    on_host_.insert(name);
    for (const size_t consumer : consumers_[name]) waiting_.push(consumer);
  }

  bool ReadsOnlyTheHost(const Candidate& node) const {
    for (size_t i = 0; i < node.view.Inputs(); ++i) {
      if (!node.view.Has(i)) continue;
      const ONNXTensorElementDataType type = node.view.InputType(i);
      if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16) return false;
      if (IsSmallConstant(node.view, i) || on_host_or_input_.count(node.view.InputName(i))) continue;
      if (!on_host_.count(node.view.InputName(i)) || OpRow::OnHost(node.row->host_inputs, i)) return false;
    }
    return true;
  }

  static bool IsSmallConstant(const NodeView& view, size_t input) {
    if (!view.IsConstant(input)) return false;
    const Shape shape = view.InputShape(input);
    return ElementsOf(shape) >= 0 && ElementsOf(shape) <= kSmallConstant;
  }

  const std::vector<Candidate>& nodes_;
  std::unordered_map<std::string, std::vector<size_t>> consumers_;
  std::unordered_set<std::string> on_host_or_input_, on_host_;
  std::priority_queue<size_t, std::vector<size_t>, std::greater<>> waiting_;  // in topological order
};

void Claim(const Ep& ep, OrtEpGraphSupportInfo* support, const std::vector<const NodeView*>& taken) {
  const Runtime& runtime = ep.runtime();
  std::unordered_set<size_t> fused;
  if (ep.options().fusion) {
    OrtNodeFusionOptions options{};
    options.ort_version_supported = runtime.version;
    for (const FusedGroup& group : FindFusions(taken)) {
      options.drop_constant_initializers = group.keeps_constants;
      std::vector<const OrtNode*> nodes;
      for (const size_t i : group.nodes) nodes.push_back(taken[i]->node());
      runtime.Check(runtime.ep->EpGraphSupportInfo_AddNodesToFuse(support, nodes.data(), nodes.size(), &options));
      fused.insert(group.nodes.begin(), group.nodes.end());
    }
  }
  for (size_t i = 0; i < taken.size(); ++i) {
    if (!fused.count(i)) runtime.Check(runtime.ep->EpGraphSupportInfo_AddSingleNode(support, taken[i]->node()));
  }
}

}  // namespace

void ClaimNodes(const Ep& ep, const OrtGraph* graph, OrtEpGraphSupportInfo* support, const Logger& logger) {
  const Runtime& runtime = ep.runtime();
  size_t count = 0;
  runtime.Check(runtime.api->Graph_GetNumNodes(graph, &count));
  std::vector<const OrtNode*> nodes(count);
  runtime.Check(runtime.api->Graph_GetNodes(graph, nodes.data(), count));  // in topological order
  const auto log_left = [&](const NodeView& view, const std::string& why) {
    logger.Log(ORT_LOGGING_LEVEL_VERBOSE, view.type() + " '" + view.Name() + "' is left to the CPU: " + why);
  };
  std::vector<Candidate> candidates;
  for (const OrtNode* node : nodes) {
    Candidate& candidate = candidates.emplace_back(Candidate{NodeView(runtime, node), nullptr});
    const OpRow* row = FindRow(ep, candidate.view);
    if (!row) continue;
    const std::string why = WhyLeft(ep, support, candidate.view, *row);
    if (why.empty()) {
      candidate.row = row;
    } else {
      log_left(candidate.view, why);
    }
  }
  const std::unordered_set<size_t> cpu = CpuPreferred(runtime, graph, candidates).Find();
  std::vector<const NodeView*> taken;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!candidates[i].row) continue;
    if (cpu.count(i)) {
      log_left(candidates[i].view, "everything it reads is on the host");
    } else {
      taken.push_back(&candidates[i].view);
    }
  }
  Claim(ep, support, taken);
}

}  // namespace mxort::provider
