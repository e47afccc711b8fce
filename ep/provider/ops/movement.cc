// Operators that move elements without computing: each is one or a few copies between views, or a gathering.
#include <algorithm>
#include <limits>
#include <numeric>

#include "device/pointwise.h"
#include "device/strided.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

using device::ContiguousStrides;

const void* At(const Tensor& tensor, int64_t element) {
  return static_cast<const char*>(tensor.data) + element * static_cast<int64_t>(BytesOf(tensor.type));
}
void* MutableAt(const Tensor& tensor, int64_t element) {
  return static_cast<char*>(tensor.data) + element * static_cast<int64_t>(BytesOf(tensor.type));
}

class CopyingNode : public NodeKernel {
 protected:
  explicit CopyingNode(const NodeInfo& node) : NodeKernel(node) {
    Check(device::Copier::Load(ep().device(), &copier_));
  }
  // out[out_begin + i * out_strides] = in[in_begin + i * in_strides] for every index i of `dims`.
  void CopyView(const NodeCall& call, const Tensor& in, int64_t in_begin, const Shape& in_strides, const Tensor& out,
                int64_t out_begin, const Shape& out_strides, const Shape& dims) const {
    if (ElementsOf(dims) == 0) return;
    Check(copier_.Launch(call.stream(), {At(in, in_begin), in_strides}, MutableAt(out, out_begin), out_strides, dims,
                         BytesOf(in.type)));
  }
  // A contiguous output.
  void CopyView(const NodeCall& call, const Tensor& in, int64_t begin, const Shape& strides, const Tensor& out) const {
    CopyView(call, in, begin, strides, out, 0, ContiguousStrides(out.shape), out.shape);
  }

 private:
  device::Copier copier_;
};

class Transpose : public CopyingNode {
 public:
  explicit Transpose(const NodeInfo& node) : CopyingNode(node), perm_(node.Ints("perm")) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor in = call.Input(0);
    const size_t rank = in.shape.size();
    Shape perm = perm_;
    if (perm.empty()) {
      for (size_t d = rank; d-- > 0;) perm.push_back(static_cast<int64_t>(d));
    }
    if (perm.size() != rank) Fail("perm", Text(perm), "as many axes as " + Text(in.shape));
    const Shape own = ContiguousStrides(in.shape);
    Shape shape(rank), strides(rank);
    for (size_t d = 0; d < rank; ++d) {
      const size_t from = AxisOf(perm[d], rank);
      shape[d] = in.shape[from];
      strides[d] = own[from];
    }
    const Tensor out = call.Output(0, shape);
    if (out.data) CopyView(call, in, 0, strides, out);
  }
  const Shape perm_;
};

class Expand : public CopyingNode {
 public:
  explicit Expand(const NodeInfo& node) : CopyingNode(node) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor in = call.Input(0);
    Shape shape;
    const Shape to = call.HostInts(1);
    if (!device::Broadcast(in.shape, to, &shape)) Fail("shape", Text(to), "one that broadcasts with " + Text(in.shape));
    const Tensor out = call.Output(0, shape);
    if (out.data) CopyView(call, in, 0, device::BroadcastStrides(in.shape, shape), out);
  }
};

class Tile : public CopyingNode {
 public:
  explicit Tile(const NodeInfo& node) : CopyingNode(node) {}

 private:
  // [a, b] tiled [m, n] is the view [m, a, n, b] with strides of zero for m and n.
  void Run(NodeCall& call) override {
    const Tensor in = call.Input(0);
    const Shape repeats = call.HostInts(1), own = ContiguousStrides(in.shape);
    if (repeats.size() != in.shape.size()) Fail("repeats", Text(repeats), "one for each axis of " + Text(in.shape));
    Shape shape, dims, strides;
    for (size_t d = 0; d < repeats.size(); ++d) {
      shape.push_back(repeats[d] * in.shape[d]);
      dims.insert(dims.end(), {repeats[d], in.shape[d]});
      strides.insert(strides.end(), {0, own[d]});
    }
    const Tensor out = call.Output(0, shape);
    if (out.data) CopyView(call, in, 0, strides, out, 0, ContiguousStrides(dims), dims);
  }
};

class Concat : public CopyingNode {
 public:
  explicit Concat(const NodeInfo& node) : CopyingNode(node), axis_(node.Int("axis", 0)) {}

 private:
  void Run(NodeCall& call) override {
    Shape shape = call.ShapeOf(0);
    const size_t axis = AxisOf(axis_, shape.size());
    for (size_t i = 1; i < call.Inputs(); ++i) {
      const Shape more = call.ShapeOf(i);
      if (more.size() != shape.size()) Fail("input " + std::to_string(i), Text(more), "the rank of " + Text(shape));
      shape[axis] += more[axis];
    }
    const Tensor out = call.Output(0, shape);
    const Shape strides = ContiguousStrides(shape);
    int64_t begin = 0;
    for (size_t i = 0; i < call.Inputs(); ++i) {
      const Tensor in = call.Input(i);
      CopyView(call, in, 0, ContiguousStrides(in.shape), out, begin, strides, in.shape);
      begin += in.shape[axis] * strides[axis];
    }
  }
  const int64_t axis_;
};

// Sizes in an attribute up to opset 12, then in input 1; without them equal parts, the last one smaller.
class Split : public CopyingNode {
 public:
  explicit Split(const NodeInfo& node)
      : CopyingNode(node), axis_(node.Int("axis", 0)), sizes_(node.Ints("split")), outputs_(node.Outputs()) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor in = call.Input(0);
    const size_t axis = AxisOf(axis_, in.shape.size());
    Shape sizes = call.Has(1) ? call.HostInts(1) : sizes_;
    const auto parts = static_cast<int64_t>(outputs_);
    const int64_t part = (in.shape[axis] + parts - 1) / parts;
    for (int64_t i = static_cast<int64_t>(sizes.size()); i < parts; ++i) {
      sizes.push_back(std::clamp<int64_t>(in.shape[axis] - i * part, 0, part));
    }
    if (std::accumulate(sizes.begin(), sizes.end(), int64_t{0}) != in.shape[axis]) {
      Fail("split", Text(sizes), "a sum of " + std::to_string(in.shape[axis]));
    }
    const Shape strides = ContiguousStrides(in.shape);
    int64_t begin = 0;
    for (size_t i = 0; i < outputs_; ++i) {
      Shape shape = in.shape;
      shape[axis] = sizes[i];
      const Tensor out = call.Output(i, shape);
      if (out.data) CopyView(call, in, begin, strides, out);
      begin += sizes[i] * strides[axis];
    }
  }
  const int64_t axis_;
  const Shape sizes_;
  const size_t outputs_;
};

class Slice : public CopyingNode {
 public:
  explicit Slice(const NodeInfo& node) : CopyingNode(node) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor in = call.Input(0);
    const Shape starts = call.HostInts(1), ends = call.HostInts(2);
    Shape axes(starts.size());
    std::iota(axes.begin(), axes.end(), 0);
    if (call.Has(3)) axes = call.HostInts(3);
    const Shape steps = call.Has(4) ? call.HostInts(4) : Shape(starts.size(), 1);
    Shape shape = in.shape, strides = ContiguousStrides(in.shape);
    int64_t begin = 0;
    for (size_t i = 0; i < starts.size(); ++i) {
      const size_t axis = AxisOf(axes.at(i), shape.size());
      const int64_t size = in.shape[axis], step = steps.at(i), stride = strides[axis];
      if (step == 0) Fail("steps", "0", "another number");
      const int64_t least = step < 0 ? -1 : 0, most = step < 0 ? size - 1 : size;
      const auto within = [&](int64_t at) { return std::clamp(at < 0 ? at + size : at, least, most); };
      // An end far below zero is "before the first element" for a negative step.
      const int64_t first = within(std::max(starts[i], -size - 1 + (step > 0)));
      const int64_t end = ends.at(i) < -size ? least : within(ends[i]);
      shape[axis] = std::max<int64_t>(0, (end - first + step + (step > 0 ? -1 : 1)) / step);
      strides[axis] = stride * step;
      begin += std::max<int64_t>(first, 0) * stride;
    }
    const Tensor out = call.Output(0, shape);
    if (out.data) CopyView(call, in, begin, strides, out);
  }
};

class Pad : public CopyingNode {
 public:
  explicit Pad(const NodeInfo& node) : CopyingNode(node) {
    const ONNXTensorElementDataType type = node.InputType(0);
    const bool given = node.InputType(2) != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // else zero
    std::vector<hip::Type> types(given ? 1 : 0, DeviceType(type));
    device::PointwiseStep fill{hip::Function::kIdentity, {given ? 0 : device::kAbsent}, DeviceType(type)};
    Check(device::Pointwise::Load(ep().device(), types, {fill}, &fill_));
  }

 private:
  void Run(NodeCall& call) override {
    const Tensor in = call.Input(0);
    const size_t rank = in.shape.size();
    const Shape pads = call.HostInts(1);
    Shape axes(rank);
    std::iota(axes.begin(), axes.end(), 0);
    if (call.Has(3)) axes = call.HostInts(3);
    if (pads.size() != 2 * axes.size()) Fail("pads", Text(pads), "two for each axis of " + Text(in.shape));
    const Shape own = ContiguousStrides(in.shape);
    Shape shape = in.shape, kept = in.shape, begins(rank, 0);
    int64_t from = 0;
    for (size_t i = 0; i < axes.size(); ++i) {
      const size_t axis = AxisOf(axes[i], rank);
      const int64_t before = pads[i], after = pads[axes.size() + i];
      shape[axis] = std::max<int64_t>(0, in.shape[axis] + before + after);
      begins[axis] = std::max<int64_t>(0, before);
      from += std::max<int64_t>(0, -before) * own[axis];
      kept[axis] = std::max<int64_t>(0, in.shape[axis] + std::min<int64_t>(0, before) + std::min<int64_t>(0, after));
    }
    const Tensor out = call.Output(0, shape);
    if (!out.data) return;
    const Shape strides = ContiguousStrides(shape);
    std::vector<device::Operand> value;
    if (call.Has(2)) value.push_back({call.Input(2).data, call.TypeOf(in), {}});
    Check(fill_.Launch(call.stream(), value, out.data, shape));
    int64_t to = 0;
    for (size_t d = 0; d < rank; ++d) to += begins[d] * strides[d];
    CopyView(call, in, from, own, out, to, strides, kept);
  }
  device::Pointwise fill_;
};

std::string WhyPadLeft(const Ep&, const NodeView& node) {
  std::string mode = "constant";
  node.String("mode", &mode);
  return mode == "constant" ? "" : "mode " + mode;
}

// ---- indices --------------------------------------------------------------------------------------------------------

class GatheringNode : public NodeKernel {
 protected:
  explicit GatheringNode(const NodeInfo& node) : NodeKernel(node) {
    Check(device::Gatherer::Load(ep().device(), &gatherer_));
  }
  device::Gatherer gatherer_;
};

class Gather : public GatheringNode {
 public:
  explicit Gather(const NodeInfo& node) : GatheringNode(node), axis_(node.Int("axis", 0)) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor data = call.Input(0), indices = call.Input(1);
    const size_t rank = data.shape.size(), axis = AxisOf(axis_, rank);
    Shape shape(data.shape.begin(), data.shape.begin() + static_cast<int64_t>(axis));
    shape.insert(shape.end(), indices.shape.begin(), indices.shape.end());
    shape.insert(shape.end(), data.shape.begin() + static_cast<int64_t>(axis) + 1, data.shape.end());
    const Tensor out = call.Output(0, shape);
    if (!out.data) return;
    const int64_t outer = ElementsOf(data.shape, 0, axis), size = data.shape[axis],
                  inner = ElementsOf(data.shape, axis + 1, rank);
    Check(gatherer_.Launch(call.stream(), {data.data, {size * inner, 0, 1}}, {indices.data, {0, 1, 0}},
                           call.TypeOf(indices), {{size, inner}}, out.data, {outer, ElementsOf(indices.shape), inner},
                           BytesOf(data.type)));
  }
  const int64_t axis_;
};

class GatherElements : public GatheringNode {
 public:
  explicit GatherElements(const NodeInfo& node) : GatheringNode(node), axis_(node.Int("axis", 0)) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor data = call.Input(0), indices = call.Input(1);
    const size_t axis = AxisOf(axis_, data.shape.size());
    const Tensor out = call.Output(0, indices.shape);
    if (!out.data) return;
    Shape strides = ContiguousStrides(data.shape);
    const device::Gatherer::Axis along{data.shape[axis], strides[axis]};
    strides[axis] = 0;
    Check(gatherer_.Launch(call.stream(), {data.data, strides}, {indices.data, ContiguousStrides(indices.shape)},
                           call.TypeOf(indices), {along}, out.data, indices.shape, BytesOf(data.type)));
  }
  const int64_t axis_;
};

class GatherND : public GatheringNode {
 public:
  explicit GatherND(const NodeInfo& node)
      : GatheringNode(node), batch_(static_cast<size_t>(node.Int("batch_dims", 0))) {}

 private:
  void Run(NodeCall& call) override {
    const Tensor data = call.Input(0), indices = call.Input(1);
    const size_t rank = data.shape.size();
    if (indices.shape.empty()) Fail("indices", "a scalar", "at least one axis");
    const int64_t depth = indices.shape.back();
    const size_t end = batch_ + static_cast<size_t>(depth);
    if (end > rank) Fail("indices", Text(indices.shape), "at most " + std::to_string(rank) + " numbers an index");
    Shape shape(indices.shape.begin(), indices.shape.end() - 1);
    shape.insert(shape.end(), data.shape.begin() + static_cast<int64_t>(end), data.shape.end());
    const Tensor out = call.Output(0, shape);
    if (!out.data) return;
    std::vector<device::Gatherer::Axis> axes;
    for (size_t d = batch_; d < end; ++d) axes.push_back({data.shape[d], ElementsOf(data.shape, d + 1, rank)});
    const int64_t batches = ElementsOf(indices.shape, 0, batch_);
    const int64_t each = ElementsOf(indices.shape, batch_, indices.shape.size() - 1),
                  inner = ElementsOf(data.shape, end, rank);
    Check(gatherer_.Launch(call.stream(), {data.data, {ElementsOf(data.shape, batch_, rank), 0, 1}},
                           {indices.data, {each * depth, depth, 0}}, call.TypeOf(indices), axes, out.data,
                           {batches, each, inner}, BytesOf(data.type)));
  }
  const size_t batch_;
};

}  // namespace

void AddMovement(Rows& rows) {
  const Types &all = AllTypes(), indices = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32};
  const auto add = [&](const char* type, int since, auto create, std::vector<size_t> host_inputs = {}) -> OpRow& {
    rows.push_back({"", type, since, kNewest, {{"T", all}}, create});
    rows.back().host_inputs = std::move(host_inputs);
    return rows.back();
  };
  add("Transpose", 1, Create<Transpose>);
  add("Expand", 8, Create<Expand>, {1});
  add("Tile", 6, Create<Tile>, {1});
  add("Concat", 4, Create<Concat>);
  add("Split", 2, Create<Split>).until = 12;
  add("Split", 13, Create<Split>, {1});
  add("Slice", 10, Create<Slice>, {1, 2, 3, 4});
  OpRow& pad = add("Pad", 11, Create<Pad>, {1, 3});
  pad.why_left = WhyPadLeft;
  pad.until = 17;
  pad.host_inputs = {1};
  const OpRow old_pad = pad;
  rows.push_back(old_pad);
  rows.back().since = 18;
  rows.back().until = kNewest;
  rows.back().host_inputs = {1, 3};
  for (const auto& [type, create] :
       {std::pair{"Gather", &Create<Gather>}, {"GatherElements", &Create<GatherElements>}}) {
    add(type, type == std::string("Gather") ? 1 : 11, create).constraints.push_back({"Tind", indices});
  }
  add("GatherND", 11, Create<GatherND>);  // its indices are int64
}

}  // namespace mxort::provider
