// MatMulMXFP4: packed weights on the device, one plan a node (device/matmul_plan.h).
#include <memory>
#include <mutex>
#include <utility>

#include "device/matmul_plan.h"
#include "ops/matmul_inputs.h"
#include "ops/matmul_spec.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

// The weights are inputs on the host: nothing but what the kernel packs goes to the device. They are packed when the
// kernel is created, where all five inputs can be read together, and PrePackWeight then only tells ONNX Runtime that it
// may free them. Constants of an outer graph (If, Loop) cannot be read at creation: they are packed in the first run.
class MatMulMXFP4 : public NodeKernel {
 public:
  explicit MatMulMXFP4(const NodeInfo& node)
      : NodeKernel(node),
        spec_(CheckAttributes(ReadAttributes(node.attributes, Mxfp4Operator()))),
        type_(DataTypeOf(kA, node.InputType(kA))) {
    PrePackWeight = [](OrtKernelImpl* self, const OrtValue*, int input, OrtAllocator*, OrtSharedPrePackedWeightCache*,
                       bool* is_packed) noexcept -> OrtStatus* {
      *is_packed = input != kA && static_cast<MatMulMXFP4*>(self)->plan_ != nullptr;
      return nullptr;
    };
    const mxort::Inputs inputs = ReadConstants(*ep().runtime().api, spec_, node.info);
    if (AllPresent(inputs)) Pack(inputs);
  }

 private:
  void Pack(const mxort::Inputs& inputs) {
    device::PlanOptions options;
    options.self_check = ep().options().self_check;
    std::unique_ptr<device::MatMulPlan> plan;
    Check(device::MatMulPlan::Create(ep().arena(), spec_, type_, HostInputs(inputs).get(), options, &plan));
    plan_ = std::move(plan);
  }

  void Run(NodeCall& call) override {
    std::call_once(packed_, [&] {
      if (plan_) return;
      mxort::Inputs inputs;
      for (size_t i = kB; i < kInputs; ++i) {
        inputs[i] = ReadInput(*ep().runtime().api, spec_, i, InputValue(*ep().runtime().api, call.context(), i));
      }
      Pack(inputs);
    });
    const Tensor a = call.Input(kA);
    const Shape shape = OutputShape(spec_, a.shape);
    const Tensor y = call.Output(0, shape);
    const int64_t m = ElementsOf(shape) / spec_.N;
    if (m == 0) return;
    if (!a.data) throw OrtError(ORT_EP_FAIL, "no device memory for A");
    const ProfiledLaunch profiled = ep().Profile(call.stream(), where(), *plan_, m);
    Check(plan_->Launch(call.stream(), a.data, m, y.data, call.Workspace(plan_->WorkspaceBytes(m))));
  }

  const MatMulSpec spec_;
  const DataType type_;
  std::once_flag packed_;
  std::unique_ptr<const device::MatMulPlan> plan_;
};

std::string WhyLeft(const Ep& ep, const NodeView& node) {
  if (node.Inputs() != kInputs) return "it has " + std::to_string(node.Inputs()) + " inputs";
  const MatMulSpec spec = CheckAttributes(ReadAttributes(node, Mxfp4Operator()));
  for (size_t i = kB; i < kInputs; ++i) {
    if (!node.Has(i)) return std::string(kInputNames[i]) + " is missing";
    if (!node.IsConstant(i)) return std::string(kInputNames[i]) + " is no constant";
    CheckInput(spec, static_cast<Input>(i), node.InputShape(i));
    if (i >= kColumnScale) DataTypeOf(static_cast<Input>(i), node.InputType(i));
  }
  return ep.WhyUnsupported(spec, DataTypeOf(kA, node.InputType(kA)));
}

}  // namespace

void AddMatMulMXFP4(Rows& rows) {
  OpRow row{kDomain, kMatMulName, 1, 1, {}, Create<MatMulMXFP4>, WhyLeft};
  row.host_inputs = {kB, kBScale, kColumnScale, kBias};
  rows.push_back(row);
}

}  // namespace mxort::provider
