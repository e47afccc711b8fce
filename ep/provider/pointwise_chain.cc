#include "provider/pointwise_chain.h"

#include <algorithm>
#include <functional>
#include <string>
#include <unordered_map>

#include "provider/ops/pointwise.h"

namespace mxort::provider {
namespace {

// The steps of some nodes, of which one is read by no other.
struct Program {
  std::vector<std::string> names;  // of what they read from elsewhere
  std::vector<hip::Type> types;
  std::vector<device::PointwiseStep> steps;

  explicit Program(const std::vector<const NodeView*>& nodes) {
    std::unordered_map<std::string, const NodeView*> makers;
    for (const NodeView* node : nodes) makers[node->OutputName(0)] = node;
    std::unordered_map<std::string, const NodeView*> last = makers;
    for (const NodeView* node : nodes) {
      for (size_t i = 0; i < node->Inputs(); ++i) {
        if (node->Has(i)) last.erase(node->InputName(i));
      }
    }
    Append(*last.begin()->second, makers);
  }

  bool Fits() const { return device::Pointwise::Fits(types.size(), steps); }

 private:
  // Behind the nodes that make what it reads, so that few results wait at a time.
  int Append(const NodeView& node, const std::unordered_map<std::string, const NodeView*>& makers) {
    std::vector<int> from;
    for (size_t i = 0; i < node.Inputs(); ++i) from.push_back(node.Has(i) ? Operand(node, i, makers) : device::kAbsent);
    AppendSteps(*PointwiseNamed(node.domain(), node.type()), node, from, DeviceType(node.OutputType(0)), &steps);
    return made_[node.OutputName(0)] = device::ResultOf(steps.size() - 1);
  }

  int Operand(const NodeView& node, size_t input, const std::unordered_map<std::string, const NodeView*>& makers) {
    const std::string name = node.InputName(input);
    if (const auto known = made_.find(name); known != made_.end()) return known->second;
    if (const auto maker = makers.find(name); maker != makers.end()) return Append(*maker->second, makers);
    names.push_back(name);
    types.push_back(DeviceType(node.InputType(input)));
    return made_[name] = static_cast<int>(names.size()) - 1;
  }

  std::unordered_map<std::string, int> made_;  // inputs and results, as steps name them
};

// Whether what `node` gives is certainly repeated along an axis of `shape`: a launch would compute it again and again.
bool IsRepeated(const NodeView& node, const Shape& shape) {
  const Shape own = node.OutputShape(0);
  if (own.empty()) return false;
  if (own.size() < shape.size()) return true;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (own[own.size() - 1 - d] == 1 && shape[shape.size() - 1 - d] != 1) return true;
  }
  return false;
}

class Finder {
 public:
  Finder(const std::vector<const NodeView*>& taken, const std::vector<bool>& grouped)
      : taken_(taken), free_(taken.size()) {
    for (size_t i = 0; i < taken.size(); ++i) {
      free_[i] = !grouped[i] && PointwiseNamed(taken[i]->domain(), taken[i]->type());
      if (free_[i]) makers_[taken[i]->OutputName(0)] = i;
    }
  }

  std::vector<std::vector<size_t>> Find() {
    std::vector<std::vector<size_t>> groups;
    for (size_t i = taken_.size(); i-- > 0;) {
      if (!free_[i]) continue;
      const std::vector<size_t> group = GroupThatEndsIn(i);
      if (group.size() == 1) continue;
      for (const size_t member : group) free_[member] = false;
      groups.push_back(group);
    }
    return groups;
  }

 private:
  // As many as a launch has room for. Nothing but the last is read elsewhere, so no way leads out of it and back.
  std::vector<size_t> GroupThatEndsIn(size_t last) const {
    const Shape shape = taken_[last]->OutputShape(0);
    std::vector<size_t> group = {last};
    for (size_t at = 0; at < group.size(); ++at) {
      const NodeView& node = *taken_[group[at]];
      for (size_t i = 0; i < node.Inputs(); ++i) {
        const auto maker = node.Has(i) ? makers_.find(node.InputName(i)) : makers_.end();
        if (maker == makers_.end() || !MayJoin(maker->second, group, shape)) continue;
        group.push_back(maker->second);
        if (!Program(Views(group)).Fits()) group.pop_back();
      }
    }
    return group;
  }

  bool MayJoin(size_t i, const std::vector<size_t>& group, const Shape& shape) const {
    const NodeView& node = *taken_[i];
    if (!free_[i] || std::find(group.begin(), group.end(), i) != group.end()) return false;
    if (node.IsGraphOutput(0) || IsRepeated(node, shape)) return false;
    size_t readers = 0;
    for (const size_t member : group) {
      for (size_t k = 0; k < taken_[member]->Inputs(); ++k) {
        if (taken_[member]->Has(k) && taken_[member]->InputName(k) == node.OutputName(0)) ++readers;
      }
    }
    return readers == node.Readers(0);
  }

  std::vector<const NodeView*> Views(const std::vector<size_t>& group) const {
    std::vector<const NodeView*> views;
    for (const size_t i : group) views.push_back(taken_[i]);
    return views;
  }

  const std::vector<const NodeView*>& taken_;
  std::vector<bool> free_;
  std::unordered_map<std::string, size_t> makers_;
};

class PointwiseChain : public FusedNode {
 public:
  PointwiseChain(Ep& ep, const FusedGraph& graph, const std::string& where) : FusedNode(ep, where) {
    std::vector<const NodeView*> nodes;
    for (const NodeView& node : graph.nodes) nodes.push_back(&node);
    const Program program(nodes);
    for (const std::string& name : program.names) {
      inputs_.push_back(static_cast<size_t>(FusedGraph::IndexOf(graph.inputs, name)));
    }
    Check(device::Pointwise::Load(ep.device(), program.types, program.steps, &pointwise_));
  }

 private:
  void Run(NodeCall& call) const override {
    std::vector<device::Operand> in;
    const Shape shape = Operands(call, inputs_, &in);
    const Tensor out = call.Output(0, shape);
    if (out.data) Check(pointwise_.Launch(call.stream(), in, out.data, shape));
  }

  std::vector<size_t> inputs_;
  device::Pointwise pointwise_;
};

}  // namespace

std::vector<std::vector<size_t>> FindPointwiseChains(const std::vector<const NodeView*>& taken,
                                                     const std::vector<bool>& grouped) {
  return Finder(taken, grouped).Find();
}

std::unique_ptr<FusedNode> MakePointwiseChain(Ep& ep, const FusedGraph& graph) {
  std::string where;
  for (const NodeView& node : graph.nodes)
    where += (where.empty() ? "" : " and ") + node.type() + " '" + node.Name() + "'";
  return std::make_unique<PointwiseChain>(ep, graph, where);
}

}  // namespace mxort::provider
