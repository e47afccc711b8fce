#include "provider/fusion.h"

#include <algorithm>
#include <unordered_map>

#include "device/device.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

// What NodeCall asks of a row: nothing is on the host.
const OpRow& FusedRow() {
  static const OpRow row{kDomain, "fused", 1, 1, {}, nullptr};
  return row;
}

int IndexOf(const std::vector<std::string>& names, const std::string& name) {
  const auto it = std::find(names.begin(), names.end(), name);
  return it == names.end() || name.empty() ? -1 : static_cast<int>(it - names.begin());
}

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

}  // namespace

std::vector<std::vector<size_t>> FindFusions(const std::vector<const NodeView*>& taken) {
  std::unordered_map<std::string, std::vector<size_t>> products;  // by their A
  for (size_t i = 0; i < taken.size(); ++i) {
    if (QuantisedProductNamed(taken[i]->domain(), taken[i]->type())) products[taken[i]->InputName(kA)].push_back(i);
  }
  std::vector<std::vector<size_t>> groups;
  for (size_t i = 0; i < taken.size(); ++i) {
    if (!IsNorm(*taken[i])) continue;
    std::vector<size_t> group = {i};
    for (const size_t product : products[taken[i]->OutputName(0)]) {
      if (IsProductOf(*taken[product], *taken[i])) group.push_back(product);
    }
    if (group.size() > 1) groups.push_back(group);
  }
  return groups;
}

FusedNode::FusedNode(Ep& ep, const OrtGraph* graph, const OrtNode* fused) : OrtNodeComputeInfo{}, ep_(ep) {
  const Runtime& runtime = ep.runtime();
  ort_version_supported = runtime.version;
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
  Check(device::RowKernel::Load(ep.device(), "norm", &norm_));

  const NodeView of_runtime(runtime, fused);
  std::vector<std::string> inputs, outputs;
  for (size_t i = 0; i < of_runtime.Inputs(); ++i) inputs.push_back(of_runtime.InputName(i));
  for (size_t i = 0; i < of_runtime.Outputs(); ++i) outputs.push_back(of_runtime.OutputName(i));
  size_t count = 0;
  runtime.Check(runtime.api->Graph_GetNumNodes(graph, &count));
  std::vector<const OrtNode*> nodes(count);
  runtime.Check(runtime.api->Graph_GetNodes(graph, nodes.data(), count));
  for (const OrtNode* each : nodes) {
    const NodeView node(runtime, each);
    const NormForm* form = NormFormOf(node.domain(), node.type());
    if (!form) {
      AddProduct(node, outputs);
      continue;
    }
    form_ = form;
    where_ = node.type() + " '" + node.Name() + "' and the products of it";
    epsilon_ = form->epsilon();
    node.Float("epsilon", &epsilon_);
    AddOperand(node, 0, inputs, &x_);
    AddOperand(node, form->skip, inputs, &skip_);
    AddOperand(node, form->scale, inputs, &scale_);
    AddOperand(node, form->shift, inputs, &shift_);
    AddOperand(node, form->bias, inputs, &bias_);
    y_ = IndexOf(outputs, node.OutputName(0));
    if (form->sum >= 0) sum_ = IndexOf(outputs, node.OutputName(static_cast<size_t>(form->sum)));
  }
}

void FusedNode::AddOperand(const NodeView& norm, int index, const std::vector<std::string>& inputs, Operand* operand) {
  const auto at = static_cast<size_t>(index);
  if (index < 0 || !norm.Has(at)) return;
  operand->input = IndexOf(inputs, norm.InputName(at));
  if (operand->input >= 0) return;
  const OrtValue* value = norm.Constant(at);
  if (!value) throw std::invalid_argument("input " + norm.InputName(at) + ": not to be had");
  Tensor& tensor = operand->constant;
  tensor = ReadTensor(*ep_.runtime().api, value);
  const size_t bytes = BytesOf(tensor);
  Check(operand->memory.Allocate(ep_.arena(), bytes, nullptr));
  Check(device::Copy(ep_.device()->ordinal(), operand->memory.data(), device::kHost, tensor.data, bytes, nullptr));
  tensor.data = operand->memory.data();
}

void FusedNode::AddProduct(const NodeView& node, const std::vector<std::string>& outputs) {
  const WeightOperator& op = *QuantisedProductNamed(node.domain(), node.type());
  Product product;
  product.where = node.type() + " '" + node.Name() + "'";
  product.spec = CheckAttributes(ReadAttributes(node, op));
  product.output = IndexOf(outputs, node.OutputName(0));
  std::vector<mxort::Inputs> operands(op.operands);
  for (size_t o = 0; o < operands.size(); ++o) {
    for (size_t i = kB; i < kInputs; ++i) {
      operands[o][i] = ReadInput(*ep_.runtime().api, product.spec, i, node.Constant(InputIndex(o, i)));
    }
  }
  product.plan = MakePlan(ep_, op, product.spec, ActivationOf(op, node), DataTypeOf(kA, node.InputType(kA)), operands);
  products_.push_back(std::move(product));
}

Tensor FusedNode::Get(const NodeCall& call, const Operand& operand) const {
  return operand.input < 0 ? operand.constant : call.Input(static_cast<size_t>(operand.input));
}

void FusedNode::Run(NodeCall& call) const {
  const Tensor x = Get(call, x_);
  if (x.shape.empty()) Fail("A", Text(x.shape), "a tensor of rank 1 or more");
  hip::NormArgs norm =
      MakeNormArgs(*form_, {x, Get(call, skip_), Get(call, scale_), Get(call, shift_), Get(call, bias_)},
                   x.shape.size() - 1, epsilon_);
  norm.out_type = norm.type;
  const auto output = [&](int index, const Shape& shape) {
    return index < 0 ? nullptr : call.Output(static_cast<size_t>(index), shape).data;
  };
  norm.y = output(y_, x.shape);
  norm.sum = output(sum_, x.shape);
  std::vector<void*> results;
  for (const Product& product : products_)
    results.push_back(output(product.output, OutputShape(product.spec, x.shape)));
  const auto m = static_cast<int64_t>(norm.shape.rows);
  if (m == 0) return;

  const bool one_launch = std::all_of(products_.begin(), products_.end(),
                                      [&](const Product& product) { return product.plan->TakesNorm(norm, m); });
  if (!one_launch) {
    if (!norm.y) norm.y = call.Workspace(static_cast<size_t>(ElementsOf(x.shape)) * BytesOf(x.type));
    Check(norm_.Launch(call.stream(), norm));
  }
  for (size_t i = 0; i < products_.size(); ++i) {
    if (!results[i]) continue;
    const device::MatMulPlan& plan = *products_[i].plan;
    const ProfiledLaunch profiled = ep_.Profile(call.stream(), products_[i].where, plan, m);
    if (one_launch) {
      Check(plan.LaunchNormalised(call.stream(), norm, m, results[i]));
      norm.y = norm.sum = nullptr;  // the first stores them
    } else {
      const size_t work = plan.WorkspaceBytes(m);
      Check(plan.Launch(call.stream(), norm.y, m, results[i], work ? call.Workspace(work) : nullptr));
    }
  }
}

}  // namespace mxort::provider
