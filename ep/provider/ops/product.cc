// Products of two tensors: MatMul, Gemm, com.microsoft FusedMatMul. Transposed operands are read where they are.
#include <algorithm>
#include <utility>

#include "device/product.h"
#include "device/strided.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

// An operand as [batch..., rows, columns] with its strides; a transpose swaps entries.
struct Matrices {
  const void* data;
  Shape shape, strides;

  explicit Matrices(const Tensor& tensor)
      : data(tensor.data), shape(tensor.shape), strides(device::ContiguousStrides(tensor.shape)) {}

  // Dimension `from` comes to lie at `to`, those between move up.
  void Move(size_t from, size_t to) {
    for (Shape* x : {&shape, &strides}) {
      const int64_t moved = (*x)[from];
      x->erase(x->begin() + static_cast<int64_t>(from));
      x->insert(x->begin() + static_cast<int64_t>(to), moved);
    }
  }
  void Insert(size_t at) {
    shape.insert(shape.begin() + static_cast<int64_t>(at), 1);
    strides.insert(strides.begin() + static_cast<int64_t>(at), 0);
  }
  int64_t Rows() const { return shape[shape.size() - 2]; }
  int64_t Columns() const { return shape.back(); }
  int64_t RowStride() const { return strides[strides.size() - 2]; }
  int64_t ColumnStride() const { return strides.back(); }

  // Strides of the batch dimensions as they broadcast to `batch`.
  std::vector<int64_t> BatchStrides(const Shape& batch) const {
    std::vector<int64_t> result(batch.size(), 0);
    const size_t own = shape.size() - 2, skip = batch.size() - own;
    for (size_t d = 0; d < own; ++d) result[skip + d] = shape[d] == 1 ? 0 : strides[d];
    return result;
  }
};

// A and B of `p` from operands whose last dimensions are [m, k] and [k, n]; returns the shape of C.
Shape SetOperands(const Matrices& a, const Matrices& b, device::ProductProblem* p) {
  const Shape batch_a(a.shape.begin(), a.shape.end() - 2), batch_b(b.shape.begin(), b.shape.end() - 2);
  if (a.Columns() != b.Rows()) Fail("input B", "shape " + Text(b.shape), std::to_string(a.Columns()) + " rows");
  if (!device::Broadcast(batch_a, batch_b, &p->batch)) {
    Fail("input B", "batch " + Text(batch_b), "one that broadcasts with " + Text(batch_a));
  }
  p->m = a.Rows(), p->n = b.Columns(), p->k = a.Columns();
  p->a = {a.data, a.RowStride(), a.ColumnStride(), a.BatchStrides(p->batch)};
  p->b = {b.data, b.ColumnStride(), b.RowStride(), b.BatchStrides(p->batch)};
  Shape shape = p->batch;
  shape.insert(shape.end(), {p->m, p->n});
  return shape;
}

class ProductNode : public NodeKernel {
 protected:
  explicit ProductNode(const NodeInfo& node) : NodeKernel(node) {
    Check(device::Product::Load(ep().device(), DeviceType(node.InputType(0)), &product_));
  }
  void Launch(NodeCall& call, const device::ProductProblem& problem) const {
    device::ProductLaunch launch;
    Check(product_.Plan(problem, &launch));
    Check(product_.Launch(call.stream(), launch, call.Workspace(launch.workspace_bytes)));
  }

 private:
  device::Product product_;
};

// MatMul, and FusedMatMul, of which it is the case without attributes.
class MatMulNode : public ProductNode {
 public:
  explicit MatMulNode(const NodeInfo& node)
      : ProductNode(node),
        alpha_(node.Float("alpha", 1)),
        a_{node.Int("transA", 0) != 0, node.Int("transBatchA", 0) != 0},
        b_{node.Int("transB", 0) != 0, node.Int("transBatchB", 0) != 0} {}

 private:
  struct Transposed {
    bool matrix, batch;
  };

  static Matrices Read(const Tensor& tensor, const Transposed& transposed) {
    Matrices operand(tensor);
    const size_t rank = operand.shape.size();
    if (rank > 2 && transposed.batch) operand.Move(0, rank - 2);  // [rows, batch..., columns]
    if (rank > 1 && transposed.matrix) operand.Move(rank - 2, rank - 1);
    return operand;
  }

  void Run(NodeCall& call) override {
    Matrices a = Read(call.Input(0), a_), b = Read(call.Input(1), b_);
    if (a.shape.empty() || b.shape.empty()) Fail("inputs", "a scalar", "at least one dimension");
    const bool vector_a = a.shape.size() == 1, vector_b = b.shape.size() == 1;
    if (vector_a) a.Insert(0);
    if (vector_b) b.Insert(1);
    device::ProductProblem problem;
    Shape shape = SetOperands(a, b, &problem);
    if (vector_b) shape.pop_back();
    if (vector_a) shape.erase(shape.end() - (vector_b ? 1 : 2));
    const Tensor c = call.Output(0, shape);
    if (!c.data) return;
    problem.c = c.data;
    problem.alpha = alpha_;
    Launch(call, problem);
  }

  const float alpha_;
  const Transposed a_, b_;
};

class Gemm : public ProductNode {
 public:
  explicit Gemm(const NodeInfo& node)
      : ProductNode(node),
        alpha_(node.Float("alpha", 1)),
        beta_(node.Float("beta", 1)),
        transpose_a_(node.Int("transA", 0) != 0),
        transpose_b_(node.Int("transB", 0) != 0) {}

 private:
  void Run(NodeCall& call) override {
    Matrices a(call.Input(0)), b(call.Input(1));
    if (a.shape.size() != 2) Fail("input A", "shape " + Text(a.shape), "two dimensions");
    if (b.shape.size() != 2) Fail("input B", "shape " + Text(b.shape), "two dimensions");
    if (transpose_a_) a.Move(0, 1);
    if (transpose_b_) b.Move(0, 1);
    device::ProductProblem problem;
    const Shape shape = SetOperands(a, b, &problem);
    if (call.Has(2) && beta_ != 0) {
      const Tensor bias = call.Input(2);
      const Shape strides = device::BroadcastStrides(bias.shape, shape);
      if (strides.size() != 2) Fail("input C", "shape " + Text(bias.shape), "one that broadcasts to " + Text(shape));
      problem.bias = bias.data;
      problem.bias_row = strides[0], problem.bias_column = strides[1];
    }
    const Tensor c = call.Output(0, shape);
    if (!c.data) return;
    problem.c = c.data;
    problem.alpha = alpha_, problem.beta = beta_;
    Launch(call, problem);
  }

  const float alpha_, beta_;
  const bool transpose_a_, transpose_b_;
};

std::string WhyMatMulLeft(const Ep&, const NodeView& node) {
  constexpr size_t kMostRank = 5;  // three batch dimensions, if none of them merge
  for (size_t i = 0; i < 2; ++i) {
    if (const size_t rank = node.InputShape(i).size(); rank > kMostRank) {
      return "an input has " + std::to_string(rank) + " dimensions";
    }
  }
  return "";
}

}  // namespace

void AddProducts(Rows& rows) {
  const Types& floats = FloatTypes();
  rows.push_back({"", "MatMul", 1, kNewest, {{"T", floats}}, Create<MatMulNode>, WhyMatMulLeft});
  rows.push_back({"com.microsoft", "FusedMatMul", 1, 1, {{"T", floats}}, Create<MatMulNode>, WhyMatMulLeft});
  rows.push_back({"", "Gemm", 7, kNewest, {{"T", floats}}, Create<Gemm>});
}

}  // namespace mxort::provider
