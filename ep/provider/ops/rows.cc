// Operators over rows: softmax, reductions, the best of a row.
#include "device/rows.h"

#include <algorithm>

#include "device/strided.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

using hip::Reduction;

hip::RowShape RowsAlong(const Shape& shape, size_t axis) {
  hip::RowShape rows{};
  Check(
      device::MakeRowShape(ElementsOf(shape, 0, axis), shape[axis], ElementsOf(shape, axis + 1, shape.size()), &rows));
  return rows;
}

// ---- softmax --------------------------------------------------------------------------------------------------------

class Softmax : public NodeKernel {
 public:
  explicit Softmax(const NodeInfo& node)
      : NodeKernel(node), axis_(node.Int("axis", -1)), log_(node.row.type == std::string("LogSoftmax")) {
    Check(device::RowKernel::Load(ep().device(), "softmax", &kernel_));
  }

 private:
  void Run(NodeCall& call) override {
    const Tensor x = call.Input(0), y = call.Output(0, x.shape);
    if (!y.data) return;
    const Shape shape = x.shape.empty() ? Shape{1} : x.shape;
    hip::SoftmaxArgs args{};
    args.shape = RowsAlong(shape, AxisOf(axis_, shape.size()));
    args.x = x.data;
    args.y = y.data;
    args.type = static_cast<int>(call.TypeOf(x));
    args.log = log_;
    Check(kernel_.Launch(call.stream(), args));
  }
  const int64_t axis_;
  const bool log_;
  device::RowKernel kernel_;
};

// ---- reductions -----------------------------------------------------------------------------------------------------

struct ReductionForm {
  const char* type;
  Reduction reduction;
};
constexpr ReductionForm kReductions[] = {
    {"ReduceSum", Reduction::kSum},       {"ReduceMean", Reduction::kMean},
    {"ReduceMax", Reduction::kMax},       {"ReduceMin", Reduction::kMin},
    {"ReduceProd", Reduction::kProd},     {"ReduceL1", Reduction::kL1},
    {"ReduceL2", Reduction::kL2},         {"ReduceSumSquare", Reduction::kSumSquare},
    {"ReduceLogSum", Reduction::kLogSum}, {"ReduceLogSumExp", Reduction::kLogSumExp},
};

class Reduce : public NodeKernel {
 public:
  Reduce(const NodeInfo& node, Reduction reduction)
      : NodeKernel(node),
        reduction_(reduction),
        axes_(node.Ints("axes")),
        keep_(node.Int("keepdims", 1) != 0),
        nothing_(node.Int("noop_with_empty_axes", 0) != 0),
        whole_(DeviceType(node.InputType(0)) >= hip::Type::kInt64) {
    Check(device::Copier::Load(ep().device(), &copier_));
    if (whole_) {
      whole_kernel_ = Load("rows", "reduce_whole");
    } else {
      Check(device::RowKernel::Load(ep().device(), "reduce_rows", &kernel_));
    }
  }

 private:
  void Run(NodeCall& call) override {
    const Tensor x = call.Input(0);
    const size_t rank = x.shape.size();
    const std::vector<int64_t> axes = call.Has(1) ? call.HostInts(1) : axes_;
    std::vector<bool> reduced(rank, axes.empty() && !nothing_);
    for (const int64_t axis : axes) reduced[AxisOf(axis, rank)] = true;
    Shape shape;
    for (size_t d = 0; d < rank; ++d) {
      if (!reduced[d]) {
        shape.push_back(x.shape[d]);
      } else if (keep_) {
        shape.push_back(1);
      }
    }
    const Tensor y = call.Output(0, shape);
    if (!y.data) return;
    if (std::find(reduced.begin(), reduced.end(), true) == reduced.end() && axes.empty() && rank > 0) {
      call.Copy(y.data, x.data, BytesOf(x));
      return;
    }
    hip::ReduceRowsArgs args{};
    args.x = Together(call, x, reduced, &args.shape);
    args.y = y.data;
    args.type = static_cast<int>(call.TypeOf(x));
    args.reduction = static_cast<int>(reduction_);
    Check(whole_ ? device::LaunchReduceWhole(whole_kernel_, call.stream(), args) : kernel_.Launch(call.stream(), args));
  }

  // The reduced axes as one: they are where they are if they are neighbours, else the tensor is transposed.
  const void* Together(NodeCall& call, const Tensor& x, const std::vector<bool>& reduced, hip::RowShape* rows) const {
    const size_t rank = x.shape.size();
    const auto first = static_cast<size_t>(std::find(reduced.begin(), reduced.end(), true) - reduced.begin());
    size_t last = first;
    while (last < rank && reduced[last]) ++last;
    if (std::find(reduced.begin() + static_cast<int64_t>(last), reduced.end(), true) == reduced.end()) {
      Check(device::MakeRowShape(ElementsOf(x.shape, 0, first), ElementsOf(x.shape, first, last),
                                 ElementsOf(x.shape, last, rank), rows));
      return x.data;
    }
    const Shape own = device::ContiguousStrides(x.shape);
    Shape dims, strides;
    int64_t outer = 1, n = 1;
    for (const bool wanted : {false, true}) {
      for (size_t d = 0; d < rank; ++d) {
        if (reduced[d] != wanted) continue;
        dims.push_back(x.shape[d]);
        strides.push_back(own[d]);
        (wanted ? n : outer) *= x.shape[d];
      }
    }
    void* transposed = call.Workspace(BytesOf(x));
    Check(copier_.Launch(call.stream(), {x.data, strides}, transposed, device::ContiguousStrides(dims), dims,
                         BytesOf(x.type)));
    Check(device::MakeRowShape(outer, n, 1, rows));
    return transposed;
  }

  const Reduction reduction_;
  const std::vector<int64_t> axes_;
  const bool keep_, nothing_, whole_;
  device::RowKernel kernel_;
  device::Kernel whole_kernel_;
  device::Copier copier_;
};

std::string WhyReduceLeft(const Ep&, const NodeView& node) {
  const hip::Type type = DeviceType(node.InputType(0));
  const bool whole = type >= hip::Type::kInt64;
  for (const char* real : {"ReduceL2", "ReduceLogSum", "ReduceLogSumExp"}) {
    if (whole && node.type() == real) return "it is of whole numbers";
  }
  return "";
}

// ---- the best of a row ----------------------------------------------------------------------------------------------

class ArgBest : public NodeKernel {
 public:
  explicit ArgBest(const NodeInfo& node)
      : NodeKernel(node),
        kernel_(Load("rows", "top")),
        axis_(node.Int("axis", 0)),
        keep_(node.Int("keepdims", 1) != 0),
        last_(node.Int("select_last_index", 0) != 0),
        least_(node.row.type == std::string("ArgMin")) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor x = call.Input(0);
    const size_t axis = AxisOf(axis_, x.shape.size());
    Shape shape = x.shape;
    shape[axis] = 1;
    if (!keep_) shape.erase(shape.begin() + static_cast<int64_t>(axis));
    const Tensor y = call.Output(0, shape);
    if (!y.data) return;
    hip::TopArgs args{};
    args.shape = RowsAlong(x.shape, axis);
    args.x = x.data;
    args.indices = static_cast<long long*>(y.data);
    args.k = 1;
    args.type = static_cast<int>(call.TypeOf(x));
    args.smallest = least_;
    args.last = last_;
    Check(device::LaunchTop(kernel_, call.stream(), args));
  }
  const device::Kernel kernel_;
  const int64_t axis_;
  const bool keep_, last_, least_;
};

class TopK : public NodeKernel {
 public:
  explicit TopK(const NodeInfo& node)
      : NodeKernel(node),
        kernel_(Load("rows", "top")),
        axis_(node.Int("axis", -1)),
        least_(node.Int("largest", 1) == 0) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor x = call.Input(0);
    const size_t axis = AxisOf(axis_, x.shape.size());
    const std::vector<int64_t> k = call.HostInts(1);
    if (k.size() != 1 || k[0] < 0 || k[0] > x.shape[axis]) {
      Fail("K", Text(k), "one number up to " + std::to_string(x.shape[axis]));
    }
    Shape shape = x.shape;
    shape[axis] = k[0];
    const Tensor values = call.Output(0, shape), indices = call.Output(1, shape);
    if (ElementsOf(shape) == 0) return;
    hip::TopArgs args{};
    args.shape = RowsAlong(x.shape, axis);
    args.x = x.data;
    args.values = values.data;
    args.indices = static_cast<long long*>(
        indices.data ? indices.data : call.Workspace(static_cast<size_t>(ElementsOf(shape)) * sizeof(int64_t)));
    args.k = static_cast<unsigned>(k[0]);
    args.type = static_cast<int>(call.TypeOf(x));
    args.smallest = least_;
    Check(device::LaunchTop(kernel_, call.stream(), args));
  }
  const device::Kernel kernel_;
  const int64_t axis_;
  const bool least_;
};

}  // namespace

void AddRows(Rows& rows) {
  const Types &floats = FloatTypes(), indices = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
  for (const char* type : {"Softmax", "LogSoftmax"}) {
    rows.push_back({"", type, 13, kNewest, {{"T", floats}}, Create<Softmax>});
  }
  // Axes in an attribute, later in an input: ReduceSum from 13, the others from 18.
  for (const ReductionForm& form : kReductions) {
    const int changed = form.reduction == Reduction::kSum ? 13 : 18;
    Types types = floats;
    types.insert(types.end(), {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32});
    OpRow row{"",
              form.type,
              1,
              changed - 1,
              {{"T", types}},
              [form](const NodeInfo& node) { return std::make_unique<Reduce>(node, form.reduction); },
              WhyReduceLeft};
    rows.push_back(row);
    row.since = changed;
    row.until = kNewest;
    row.host_inputs = {1};
    rows.push_back(row);
  }
  for (const char* type : {"ArgMax", "ArgMin"}) {
    rows.push_back({"", type, 1, kNewest, {{"T", floats}}, Create<ArgBest>});
  }
  OpRow top{"", "TopK", 10, kNewest, {{"T", floats}}, Create<TopK>};
  top.host_inputs = {1};
  rows.push_back(top);
}

}  // namespace mxort::provider
