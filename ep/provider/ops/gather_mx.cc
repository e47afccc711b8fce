// GatherMX*: rows out of a quantised table, which stays on the device as the model has it.
#include <algorithm>

#include "kernels/hip/args_gather.h"
#include "ops/matmul_inputs.h"
#include "ops/matmul_spec.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

constexpr ONNXTensorElementDataType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
enum GatherInput { kIndices, kTable, kTableScale, kMultiplier };

const WeightOperator& GatherNamed(const std::string& name) {
  for (const WeightOperator& op : GatherOperators()) {
    if (op.name == name) return op;
  }
  throw std::invalid_argument("operator " + name + " is not known");
}

const char* KernelOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kMxfp4:
      return "gather_mxfp4";
    case WeightFormat::kMxfp6E2M3:
      return "gather_mxfp6_e2m3";
    case WeightFormat::kMxfp6E3M2:
      return "gather_mxfp6_e3m2";
    case WeightFormat::kMxfp8E4M3:
      return "gather_mxfp8_e4m3";
    case WeightFormat::kMxint8:
      return "gather_mxint8";
  }
  return "";
}

class GatherMx : public NodeKernel {
 public:
  explicit GatherMx(const NodeInfo& node)
      : NodeKernel(node),
        format_(FormatOf(GatherNamed(node.row.type), node.attributes)),
        k_(node.attributes.Required("K")),
        kernel_(Load("gather_mx", KernelOf(format_))) {
    CheckDimension("K", k_);
  }

 private:
  void Run(NodeCall& call) override {
    const Tensor indices = call.Input(kIndices), table = call.Input(kTable), scale = call.Input(kTableScale),
                 multiplier = call.Input(kMultiplier);
    const int64_t blocks = BlocksOf(k_), row_bytes = blocks * BlockBytes(format_);
    const int64_t rows = table.shape.empty() ? 0 : table.shape[0];
    CheckShape("B", table.shape, {rows, row_bytes});
    CheckShape("B_scale", scale.shape, {rows, blocks});
    CheckShape("multiplier", multiplier.shape, {rows});
    Shape shape = indices.shape;
    shape.push_back(k_);
    const Tensor y = call.Output(0, shape);
    if (!y.data) return;
    hip::GatherMxArgs args{};
    args.indices = indices.data;
    args.codes = static_cast<const unsigned char*>(table.data);
    args.scales = static_cast<const unsigned char*>(scale.data);
    args.multiplier = multiplier.data;
    args.y = y.data;
    args.count = static_cast<uint64_t>(ElementsOf(indices.shape));
    args.rows = rows;
    args.k = static_cast<unsigned>(k_);
    args.grid_rows = static_cast<unsigned>(std::min<uint64_t>(args.count, 65535));
    args.wide = indices.type == kInt64;
    args.type = static_cast<int>(call.TypeOf(multiplier));
    Check(kernel_.Launch({(args.k + 1023) / 1024, args.grid_rows, 1}, 256, call.stream(), &args));
  }

  const WeightFormat format_;
  const int64_t k_;
  const device::Kernel kernel_;
};

std::string WhyLeft(const Ep&, const NodeView& node) {
  FormatOf(GatherNamed(node.type()), node);
  CheckDimension("K", node.Required("K"));
  const ONNXTensorElementDataType type = node.InputType(kIndices);
  if (type != kInt64 && type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) return "indices are no int64 or int32";
  DataTypeOf(kColumnScale, node.InputType(kMultiplier));
  return "";
}

}  // namespace

void AddGatherMx(Rows& rows) {
  for (const WeightOperator& op : GatherOperators()) {
    rows.push_back({kDomain, op.name.c_str(), 1, 1, {}, Create<GatherMx>, WhyLeft});
  }
}

}  // namespace mxort::provider
