// MoEMXFP4: a mixture of experts, routed on the device (device/experts.h). As with MatMulMX* the weights are inputs on
// the host and packed when the kernel is created; constants of an outer graph in the first run.
#include "device/experts.h"

#include <memory>
#include <mutex>
#include <utility>

#include "ops/experts_inputs.h"
#include "ops/matmul_inputs.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

// A product's weights in host memory as the device takes them, its vectors widened to float.
class HostProduct {
 public:
  explicit HostProduct(const std::array<Tensor, kParts>& tensors)
      : host_{WeightsOf(tensors), Widened(kColumnScale, tensors[kColumnScales], &widened_[0]),
              Widened(kBias, tensors[kBiases], &widened_[1])} {}
  HostProduct(const HostProduct&) = delete;
  HostProduct& operator=(const HostProduct&) = delete;
  const device::HostWeights& get() const { return host_; }

 private:
  std::array<std::vector<float>, 2> widened_;
  device::HostWeights host_;
};

class Experts : public NodeKernel {
 public:
  explicit Experts(const NodeInfo& node)
      : NodeKernel(node), attributes_(node.attributes), type_(DataTypeOf(kA, node.InputType(kX))) {
    PrePackWeight = [](OrtKernelImpl* self, const OrtValue*, int input, OrtAllocator*, OrtSharedPrePackedWeightCache*,
                       bool* is_packed) noexcept -> OrtStatus* {
      *is_packed = input >= static_cast<int>(kWeights) && static_cast<Experts*>(self)->plan_ != nullptr;
      return nullptr;
    };
    const ExpertsTensors constants = ReadExpertsConstants(*ep().runtime().api, node.info);
    if (AllPresent(constants)) Pack(constants);
  }

 private:
  void Pack(const ExpertsTensors& tensors) {
    device::ExpertsOptions options;
    options.self_check = ep().options().self_check;
    const HostProduct first(tensors[0]), second(tensors[1]);
    std::unique_ptr<device::ExpertsPlan> plan;
    Check(device::ExpertsPlan::Create(ep().arena(), attributes_.SpecOf(ShapesOf(tensors)), type_, first.get(),
                                      second.get(), options, &plan));
    plan_ = std::move(plan);
  }

  void PackInFirstRun(const NodeCall& call) {
    if (plan_) return;
    ExpertsTensors tensors;
    ReadExpertsInputs(*ep().runtime().api, call.context(), &tensors);
    Pack(tensors);
  }

  void Run(NodeCall& call) override {
    std::call_once(packed_, [&] { PackInFirstRun(call); });
    const Tensor x = call.Input(kX), router = call.Input(kRouter);
    const int64_t rows = CheckExpertsRows(plan_->spec(), x.shape, router.shape);
    const Tensor y = call.Output(0, x.shape);
    if (rows == 0) return;
    if (!x.data || !router.data) throw OrtError(ORT_EP_FAIL, "no device memory for X or router");
    const ProfiledLaunch profiled = ep().Profile(call.stream(), where(), *plan_, rows);
    Check(plan_->Launch(call.stream(), x.data, router.data, rows, y.data, call.Workspace(plan_->WorkspaceBytes(rows))));
  }

  const ExpertsAttributes attributes_;
  const DataType type_;
  std::once_flag packed_;
  std::unique_ptr<const device::ExpertsPlan> plan_;
};

std::string WhyLeft(const Ep& ep, const NodeView& node) {
  if (node.Inputs() != kExpertsInputs) return "it has " + std::to_string(node.Inputs()) + " inputs";
  const ExpertsAttributes attributes(node);
  ExpertsShapes shapes;
  for (size_t i = 0; i < kProducts; ++i) {
    for (size_t part = 0; part < kParts; ++part) {
      const size_t index = ExpertsIndex(i, part);
      const std::string name = ExpertsInputName(i, part);
      if (!node.Has(index)) return name + " is missing";
      if (!node.IsConstant(index)) return name + " is no constant";
      shapes[i][part] = node.InputShape(index);
      if (part >= kColumnScales) DataTypeOf(part == kBiases ? kBias : kColumnScale, node.InputType(index));
    }
  }
  return ep.WhyUnsupported(attributes.SpecOf(shapes), DataTypeOf(kA, node.InputType(kX)));
}

}  // namespace

void AddExperts(Rows& rows) {
  OpRow row{kDomain, kExpertsName, 1, 1, {}, Create<Experts>, WhyLeft};
  for (size_t i = kWeights; i < kExpertsInputs; ++i) row.host_inputs.push_back(i);
  rows.push_back(row);
}

}  // namespace mxort::provider
