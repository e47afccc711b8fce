#include "provider/ops/normalisation.h"

#include <algorithm>
#include <cstring>

#include "device/rows.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

constexpr const char* kMicrosoft = "com.microsoft";

constexpr NormForm kNorms[] = {
    {"", "LayerNormalization", 17, false, -1, 1, 2, -1, 1, 2, -1},
    {"", "RMSNormalization", 23, true, -1, 1, -1, -1, -1, -1, -1},
    {"", "SimplifiedLayerNormalization", 1, true, -1, 1, -1, -1, -1, 1, -1},
    {kMicrosoft, "SkipLayerNormalization", 1, false, 1, 2, 3, 4, 1, 2, 3},
    {kMicrosoft, "SkipSimplifiedLayerNormalization", 1, true, 1, 2, -1, 3, 1, 2, 3},
};

class Normalisation : public NodeKernel {
 public:
  Normalisation(const NodeInfo& node, const NormForm& form)
      : NodeKernel(node),
        form_(form),
        axis_(node.Int("axis", -1)),
        epsilon_(node.Float("epsilon", form.epsilon())),
        outputs_(node.Outputs()) {
    Check(device::RowKernel::Load(ep().device(), "norm", &kernel_));
  }

 private:
  Tensor Optional(const NodeCall& call, int index) const {
    return index >= 0 && call.Has(static_cast<size_t>(index)) ? call.Input(static_cast<size_t>(index)) : Tensor{};
  }
  // Null where nobody asks for it.
  void* Asked(const NodeCall& call, int index, const Shape& shape) const {
    return index >= 0 && static_cast<size_t>(index) < outputs_ ? call.Output(static_cast<size_t>(index), shape).data
                                                               : nullptr;
  }

  void Run(NodeCall& call) override {
    const Tensor x = call.Input(0);
    const size_t rank = x.shape.size(), axis = form_.skip >= 0 ? rank - 1 : AxisOf(axis_, rank);
    const NormInputs inputs{x, Optional(call, form_.skip), Optional(call, form_.scale), Optional(call, form_.shift),
                            Optional(call, form_.bias)};
    hip::NormArgs args = MakeNormArgs(form_, inputs, axis, epsilon_);
    const Tensor y = call.Output(0, x.shape);
    Shape per_row = x.shape;
    std::fill(per_row.begin() + static_cast<int64_t>(axis), per_row.end(), 1);
    args.mean = form_.rms ? nullptr : static_cast<float*>(Asked(call, form_.mean, per_row));
    args.inverse = static_cast<float*>(Asked(call, form_.inverse, per_row));
    args.sum = Asked(call, form_.sum, x.shape);
    if (!y.data) return;
    args.y = y.data;
    args.out_type = static_cast<int>(call.TypeOf(y));
    Check(kernel_.Launch(call.stream(), args));
  }

  const NormForm& form_;
  const int64_t axis_;
  const float epsilon_;
  const size_t outputs_;
  device::RowKernel kernel_;
};

// What the device writes of mean and inverse deviation is float; a graph that wants them in another type is rare.
std::string WhyNormLeft(const Ep&, const NodeView& node) {
  const int64_t float_type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (node.IntOr("stash_type", float_type) != float_type) return "stash_type is not float";
  const bool skips = node.domain() == kMicrosoft;
  if (node.HasOutput(1) && !skips && node.type() != "LayerNormalization" && node.InputType(0) != float_type) {
    return "output 1 is asked for";
  }
  if (skips && (node.HasOutput(1) || node.HasOutput(2))) return "outputs for training are asked for";
  return "";
}

}  // namespace

const NormForm* NormFormOf(const std::string& domain, const std::string& type) {
  for (const NormForm& form : kNorms) {
    if (domain == form.domain && type == form.type) return &form;
  }
  return nullptr;
}

hip::NormArgs MakeNormArgs(const NormForm& form, const NormInputs& in, size_t axis, float epsilon) {
  const size_t rank = in.x.shape.size();
  const int64_t rows = ElementsOf(in.x.shape, 0, axis), n = ElementsOf(in.x.shape, axis, rank);
  for (const Tensor* vector : {&in.bias, &in.scale, &in.shift}) {
    if (vector->data && ElementsOf(vector->shape) != n) {
      Fail("scale or bias", Text(vector->shape), std::to_string(n) + " elements");
    }
  }
  if (in.skip.data && (ElementsOf(in.skip.shape) % n != 0 || ElementsOf(in.skip.shape) > rows * n)) {
    Fail("skip", Text(in.skip.shape), "rows of " + Text(in.x.shape));
  }
  hip::NormArgs args{};
  Check(device::MakeRowShape(rows, n, 1, &args.shape));
  args.x = in.x.data;
  args.skip = in.skip.data;
  args.bias = in.bias.data;
  args.scale = in.scale.data;
  args.shift = in.shift.data;
  args.skip_rows = static_cast<uint64_t>(in.skip.data ? ElementsOf(in.skip.shape) / n : 1);
  args.epsilon = epsilon;
  args.type = static_cast<int>(DeviceType(in.x.type));
  args.scale_type = in.scale.data ? static_cast<int>(DeviceType(in.scale.type)) : args.type;
  args.rms = form.rms;
  return args;
}

void AddNormalisations(Rows& rows) {
  const Types& floats = FloatTypes();
  for (const NormForm& form : kNorms) {
    rows.push_back({form.domain,
                    form.type,
                    form.since,
                    *form.domain || form.since == 1 ? 1 : kNewest,
                    {{"T", floats}},
                    [&form](const NodeInfo& node) { return std::make_unique<Normalisation>(node, form); },
                    WhyNormLeft});
  }
}

}  // namespace mxort::provider
