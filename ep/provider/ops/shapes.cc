// Operators that move no data: shapes, which the CPU reads, and other shapes of the same memory.
#include <algorithm>

#include "provider/op_table.h"

namespace mxort::provider {
namespace {

// With outputs on the host, as everything that follows from a shape is computed there.
class ShapeNode : public NodeKernel {
 public:
  explicit ShapeNode(const NodeInfo& node)
      : NodeKernel(node), start_(node.Int("start", 0)), end_(node.Int("end", std::numeric_limits<int64_t>::max())) {}

 private:
  void Run(NodeCall& call) override {
    const Shape shape = call.ShapeOf(0);
    const auto rank = static_cast<int64_t>(shape.size());
    const auto within = [&](int64_t i) { return std::clamp<int64_t>(i < 0 ? i + rank : i, 0, rank); };
    const int64_t begin = within(start_), end = std::max(begin, within(end_));
    const Tensor out = call.Output(0, {end - begin});
    if (out.data) std::copy(shape.begin() + begin, shape.begin() + end, static_cast<int64_t*>(out.data));
  }
  const int64_t start_, end_;
};

class SizeNode : public NodeKernel {
 public:
  using NodeKernel::NodeKernel;
  explicit SizeNode(const NodeInfo& node) : NodeKernel(node) {}

 private:
  void Run(NodeCall& call) override { *static_cast<int64_t*>(call.Output(0, {}).data) = ElementsOf(call.ShapeOf(0)); }
};

// A copy only where ONNX Runtime did not give the output the memory of the input.
class ViewNode : public NodeKernel {
 protected:
  explicit ViewNode(const NodeInfo& node) : NodeKernel(node) {}
  virtual Shape ShapeFor(const NodeCall& call, const Shape& in) const = 0;

 private:
  void Run(NodeCall& call) override {
    const Tensor in = call.Input(0);
    const Tensor out = call.Output(0, ShapeFor(call, in.shape));
    if (ElementsOf(in.shape) != ElementsOf(out.shape))
      Fail("shape", Text(out.shape), "the elements of " + Text(in.shape));
    if (out.data) call.Copy(out.data, in.data, BytesOf(in));
  }
};

class IdentityNode : public ViewNode {
 public:
  explicit IdentityNode(const NodeInfo& node) : ViewNode(node) {}

 private:
  Shape ShapeFor(const NodeCall&, const Shape& in) const override { return in; }
};

class ReshapeNode : public ViewNode {
 public:
  explicit ReshapeNode(const NodeInfo& node) : ViewNode(node), allow_zero_(node.Int("allowzero", 0) != 0) {}

 private:
  Shape ShapeFor(const NodeCall& call, const Shape& in) const override {
    Shape shape = call.HostInts(1);
    int64_t known = 1;
    size_t open = shape.size();
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] == 0 && !allow_zero_) {
        if (i >= in.size()) Fail("shape", Text(shape), "zeros only for axes of " + Text(in));
        shape[i] = in[i];
      }
      if (shape[i] == -1) {
        open = i;
      } else {
        known *= shape[i];
      }
    }
    if (open < shape.size()) shape[open] = known ? ElementsOf(in) / known : 0;
    return shape;
  }
  const bool allow_zero_;
};

class FlattenNode : public ViewNode {
 public:
  explicit FlattenNode(const NodeInfo& node) : ViewNode(node), axis_(node.Int("axis", 1)) {}

 private:
  Shape ShapeFor(const NodeCall&, const Shape& in) const override {
    const auto rank = static_cast<int64_t>(in.size());
    const int64_t axis = axis_ < 0 ? axis_ + rank : axis_;
    if (axis < 0 || axis > rank) Fail("axis", std::to_string(axis_), "one of " + Text(in));
    return {ElementsOf({in.begin(), in.begin() + axis}), ElementsOf({in.begin() + axis, in.end()})};
  }
  const int64_t axis_;
};

// Squeeze and Unsqueeze: axes in an attribute up to opset 12, then in input 1.
class AxesNode : public ViewNode {
 public:
  explicit AxesNode(const NodeInfo& node)
      : ViewNode(node), insert_(node.row.type == std::string("Unsqueeze")), axes_(node.Ints("axes")) {}

 private:
  Shape ShapeFor(const NodeCall& call, const Shape& in) const override {
    const std::vector<int64_t> axes = call.Has(1) ? call.HostInts(1) : axes_;
    const size_t rank = in.size() + (insert_ ? axes.size() : 0);
    std::vector<bool> named(rank, false);
    for (const int64_t axis : axes) named[AxisOf(axis, rank)] = true;
    Shape shape;
    if (insert_) {
      size_t next = 0;
      for (size_t i = 0; i < rank; ++i) shape.push_back(named[i] ? 1 : in.at(next++));
      return shape;
    }
    for (size_t i = 0; i < rank; ++i) {
      if (axes.empty() ? in[i] != 1 : !named[i]) shape.push_back(in[i]);
    }
    return shape;
  }
  const bool insert_;
  const std::vector<int64_t> axes_;
};

template <class Node>
OpRow ViewRow(const char* type, int since) {
  OpRow row{"", type, since, kNewest, {}, Create<Node>};
  row.aliases = {{0, 0}};
  return row;
}

}  // namespace

void AddShapes(Rows& rows) {
  for (const char* type : {"Shape", "Size"}) {
    OpRow row{
        "", type, 1, kNewest, {{"T", AllTypes()}}, type == std::string("Shape") ? Create<ShapeNode> : Create<SizeNode>};
    row.host_outputs = {0};
    rows.push_back(row);
  }
  OpRow identity = ViewRow<IdentityNode>("Identity", 1);
  identity.until = 13;  // later ones take sequences too, under another parameter
  identity.constraints = {{"T", AllTypes()}};
  rows.push_back(identity);
  identity.since = 14;
  identity.until = kNewest;
  identity.constraints = {{"V", AllTypes()}};
  rows.push_back(identity);
  OpRow reshape = ViewRow<ReshapeNode>("Reshape", 5);
  reshape.constraints = {{"T", AllTypes()}};
  reshape.host_inputs = {1};
  rows.push_back(reshape);
  OpRow flatten = ViewRow<FlattenNode>("Flatten", 1);
  flatten.constraints = {{"T", AllTypes()}};
  rows.push_back(flatten);
  for (const char* type : {"Squeeze", "Unsqueeze"}) {
    OpRow row = ViewRow<AxesNode>(type, 1);
    row.constraints = {{"T", AllTypes()}};
    row.until = 12;
    rows.push_back(row);
    row.since = 13;
    row.until = kNewest;
    row.host_inputs = {1};
    rows.push_back(row);
  }
}

}  // namespace mxort::provider
