#include "provider/normed_products.h"

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>

#include "device/device.h"
#include "device/pointwise.h"
#include "device/rows.h"
#include "provider/op_table.h"
#include "provider/ops/normalisation.h"
#include "provider/ops/quantised_product.h"

namespace mxort::provider {
namespace {

// Whether its kernel can be part of a product's: along the last axis, and of its outputs y and sum alone.
bool IsNorm(const NodeView& node) {
  const NormForm* form = NormFormOf(node.domain(), node.type());
  if (!form || node.IntOr("axis", -1) != -1) return false;
  for (const int output : {form->mean, form->inverse}) {
    if (output >= 0 && node.HasOutput(static_cast<size_t>(output))) return false;
  }
  return !node.Constant(0);
}

// Whether a product that reads what `norm` gives may be part of it: of x's type, its weights in the same graph.
bool IsProductOf(const NodeView& node, const NodeView& norm) {
  if (node.InputType(kA) != norm.InputType(0)) return false;
  for (size_t i = kB; i < node.Inputs(); ++i) {
    if (!node.Constant(i)) return false;
  }
  return true;
}

// Whether `add` gives what a normalisation reads, and can be part of it. Everything else that it reads is constant, so
// no other way leads from the sum to it.
bool IsSumOf(const NodeView& add, const NodeView& norm) {
  const NormForm& form = *NormFormOf(norm.domain(), norm.type());
  if (add.type() != "Add" || !add.domain().empty() || form.skip >= 0) return false;
  for (size_t i = 1; i < norm.Inputs(); ++i) {
    if (norm.Has(i) && !norm.Constant(i)) return false;
  }
  return true;
}

// Whether a tensor that is added to one of shape `both` is rows that take turns.
bool AreRows(const Shape& shape, const Shape& both) {
  const auto begin = std::find_if(shape.begin(), shape.end(), [](int64_t size) { return size != 1; });
  const auto rank = shape.end() - begin;
  return rank > 0 && rank <= static_cast<int64_t>(both.size()) && std::equal(begin, shape.end(), both.end() - rank);
}

std::string WhereOf(const FusedGraph& graph) {
  for (const NodeView& node : graph.nodes) {
    if (NormFormOf(node.domain(), node.type())) return node.type() + " '" + node.Name() + "' and the products of it";
  }
  return "";
}

class NormedProducts : public FusedNode {
 public:
  NormedProducts(Ep& ep, const FusedGraph& graph);

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
  void AddOperand(const NodeView& norm, int index, const FusedGraph& graph, Operand* operand);
  void AddProduct(const NodeView& node, const FusedGraph& graph);
  void AddUp(NodeCall& call, Tensor* x, Tensor* skip, void** sum) const;
  Tensor Get(const NodeCall& call, const Operand& operand) const;
  void Run(NodeCall& call) const override;

  const NormForm* form_ = nullptr;
  float epsilon_ = 0;
  Operand x_, skip_, scale_, shift_, bias_;
  int y_ = -1, sum_ = -1;  // outputs of the fused node; -1: nobody asks
  device::RowKernel norm_;
  bool adds_ = false;  // x and skip are the operands of an Add
  device::Pointwise add_;
  std::vector<Product> products_;
};

NormedProducts::NormedProducts(Ep& ep, const FusedGraph& graph) : FusedNode(ep, WhereOf(graph)) {
  Check(device::RowKernel::Load(ep.device(), "norm", &norm_));
  for (const NodeView& node : graph.nodes) {
    if (node.type() == "Add") {
      adds_ = true;
      AddOperand(node, 0, graph, &x_);
      AddOperand(node, 1, graph, &skip_);
      sum_ = FusedGraph::IndexOf(graph.outputs, node.OutputName(0));
      const hip::Type type = DeviceType(node.OutputType(0));
      const device::PointwiseStep add{hip::Function::kAdd, {0, 1, device::kAbsent}, type};
      Check(device::Pointwise::Load(ep.device(), {type, type}, {add}, &add_));
    } else if (!NormFormOf(node.domain(), node.type())) {
      AddProduct(node, graph);
    }
  }
  for (const NodeView& node : graph.nodes) {
    const NormForm* form = NormFormOf(node.domain(), node.type());
    if (!form) continue;
    form_ = form;
    epsilon_ = form->epsilon();
    node.Float("epsilon", &epsilon_);
    if (!adds_) AddOperand(node, 0, graph, &x_);
    AddOperand(node, form->skip, graph, &skip_);
    AddOperand(node, form->scale, graph, &scale_);
    AddOperand(node, form->shift, graph, &shift_);
    AddOperand(node, form->bias, graph, &bias_);
    y_ = FusedGraph::IndexOf(graph.outputs, node.OutputName(0));
    if (form->sum >= 0) sum_ = FusedGraph::IndexOf(graph.outputs, node.OutputName(static_cast<size_t>(form->sum)));
  }
}

void NormedProducts::AddOperand(const NodeView& norm, int index, const FusedGraph& graph, Operand* operand) {
  const auto at = static_cast<size_t>(index);
  if (index < 0 || !norm.Has(at)) return;
  operand->input = FusedGraph::IndexOf(graph.inputs, norm.InputName(at));
  if (operand->input >= 0) return;
  const OrtValue* value = norm.Constant(at);
  if (!value) throw std::invalid_argument("input " + norm.InputName(at) + ": not to be had");
  Tensor& tensor = operand->constant;
  tensor = ReadTensor(*ep().runtime().api, value);
  const size_t bytes = BytesOf(tensor);
  Check(operand->memory.Allocate(ep().arena(), bytes, nullptr));
  Check(device::Copy(ep().device()->ordinal(), operand->memory.data(), device::kHost, tensor.data, bytes, nullptr));
  tensor.data = operand->memory.data();
}

void NormedProducts::AddProduct(const NodeView& node, const FusedGraph& graph) {
  const WeightOperator& op = *QuantisedProductNamed(node.domain(), node.type());
  Product product;
  product.where = node.type() + " '" + node.Name() + "'";
  product.spec = CheckAttributes(ReadAttributes(node, op));
  product.output = FusedGraph::IndexOf(graph.outputs, node.OutputName(0));
  std::vector<mxort::Inputs> operands(op.operands);
  for (size_t o = 0; o < operands.size(); ++o) {
    for (size_t i = kB; i < kInputs; ++i) {
      operands[o][i] = ReadInput(*ep().runtime().api, product.spec, i, node.Constant(InputIndex(o, i)));
    }
  }
  product.plan = MakePlan(ep(), op, product.spec, ActivationOf(op, node), DataTypeOf(kA, node.InputType(kA)), operands);
  products_.push_back(std::move(product));
}

// Leaves the sum to the normalisation where one operand has its shape and the other is rows of it.
void NormedProducts::AddUp(NodeCall& call, Tensor* x, Tensor* skip, void** sum) const {
  Shape both;
  if (!device::Broadcast(x->shape, skip->shape, &both)) {
    Fail("B of Add", "shape " + Text(skip->shape), "one that broadcasts with " + Text(x->shape));
  }
  if (x->shape != both) std::swap(*x, *skip);
  *sum = sum_ < 0 ? nullptr : call.Output(static_cast<size_t>(sum_), both).data;
  if (x->shape == both && AreRows(skip->shape, both)) return;
  Tensor added = *x;
  added.shape = both;
  added.data = *sum ? *sum : call.Workspace(BytesOf(added));
  const auto operand = [&](const Tensor& tensor) {
    return device::Operand{tensor.data, call.TypeOf(tensor), tensor.shape};
  };
  Check(add_.Launch(call.stream(), {operand(*x), operand(*skip)}, const_cast<void*>(added.data), both));
  *sum = nullptr;
  *skip = {};
  *x = added;
}

Tensor NormedProducts::Get(const NodeCall& call, const Operand& operand) const {
  return operand.input < 0 ? operand.constant : call.Input(static_cast<size_t>(operand.input));
}

void NormedProducts::Run(NodeCall& call) const {
  Tensor x = Get(call, x_), skip = Get(call, skip_);
  void* sum = nullptr;
  if (adds_) AddUp(call, &x, &skip, &sum);
  if (x.shape.empty()) Fail("A", Text(x.shape), "a tensor of rank 1 or more");
  hip::NormArgs norm = MakeNormArgs(*form_, {x, skip, Get(call, scale_), Get(call, shift_), Get(call, bias_)},
                                    x.shape.size() - 1, epsilon_);
  norm.out_type = norm.type;
  norm.rounds = adds_;
  const auto output = [&](int index, const Shape& shape) {
    return index < 0 ? nullptr : call.Output(static_cast<size_t>(index), shape).data;
  };
  norm.y = output(y_, x.shape);
  norm.sum = adds_ ? sum : output(sum_, x.shape);
  std::vector<void*> results;
  for (const Product& product : products_)
    results.push_back(output(product.output, OutputShape(product.spec, x.shape)));
  const auto m = static_cast<int64_t>(norm.shape.rows);
  if (m == 0) return;

  const bool one_launch =
      !products_.empty() && std::all_of(products_.begin(), products_.end(),
                                        [&](const Product& product) { return product.plan->TakesNorm(norm, m); });
  if (!one_launch) {
    if (!norm.y) norm.y = call.Workspace(static_cast<size_t>(ElementsOf(x.shape)) * BytesOf(x.type));
    Check(norm_.Launch(call.stream(), norm));
  }
  for (size_t i = 0; i < products_.size(); ++i) {
    if (!results[i]) continue;
    const device::MatMulPlan& plan = *products_[i].plan;
    const ProfiledLaunch profiled = ep().Profile(call.stream(), products_[i].where, plan, m);
    if (one_launch) {
      Check(plan.LaunchNormalised(call.stream(), norm, m, results[i]));
      norm.y = norm.sum = nullptr;  // the first stores them
    } else {
      const size_t work = plan.WorkspaceBytes(m);
      Check(plan.Launch(call.stream(), norm.y, m, results[i], work ? call.Workspace(work) : nullptr));
    }
  }
}

}  // namespace

std::vector<std::vector<size_t>> FindNormedProducts(const std::vector<const NodeView*>& taken) {
  std::unordered_map<std::string, std::vector<size_t>> products;  // by their A
  std::unordered_map<std::string, size_t> sums;
  for (size_t i = 0; i < taken.size(); ++i) {
    if (QuantisedProductNamed(taken[i]->domain(), taken[i]->type())) products[taken[i]->InputName(kA)].push_back(i);
    if (taken[i]->type() == "Add") sums[taken[i]->OutputName(0)] = i;
  }
  std::vector<std::vector<size_t>> groups;
  for (size_t i = 0; i < taken.size(); ++i) {
    if (!IsNorm(*taken[i])) continue;
    std::vector<size_t> group = {i};
    const auto sum = sums.find(taken[i]->InputName(0));
    if (sum != sums.end() && IsSumOf(*taken[sum->second], *taken[i])) {
      group.push_back(sum->second);
      sums.erase(sum);  // of another normalisation's it is an input
    }
    for (const size_t product : products[taken[i]->OutputName(0)]) {
      if (IsProductOf(*taken[product], *taken[i])) group.push_back(product);
    }
    if (group.size() > 1) groups.push_back(group);
  }
  return groups;
}

std::unique_ptr<FusedNode> MakeNormedProducts(Ep& ep, const FusedGraph& graph) {
  return std::make_unique<NormedProducts>(ep, graph);
}

}  // namespace mxort::provider
