// RotaryEmbedding of com.microsoft and of ONNX.
#include "provider/ops/attention.h"

namespace mxort::provider {
namespace {

class RotaryEmbedding : public AttentionNode {
 public:
  explicit RotaryEmbedding(const NodeInfo& node)
      : AttentionNode(node),
        onnx_(!*node.row.domain),
        heads_(node.Int("num_heads", 0)),
        dimensions_(node.Int("rotary_embedding_dim", 0)),
        interleaved_(node.Int("interleaved", 0) != 0) {}

  static std::string WhyLeft(const Ep&, const NodeView& node) {
    float scale = 1;
    if (node.IntOr("is_packed_batching", 0)) return "its batches are packed";
    if (node.Float("scale", &scale) && scale != 1) return "it has a scale";
    const Shape shape = node.InputShape(0);
    if (shape.size() == 4 && shape[3] > hip::kMostHeadSize) {
      return "it has heads of " + std::to_string(shape[3]) + " numbers, expected at most " +
             std::to_string(hip::kMostHeadSize);
    }
    return {};
  }

 private:
  void Run(NodeCall& call) override {
    const Tensor in = call.Input(0), cos = call.Input(onnx_ ? 1 : 2), sin = call.Input(onnx_ ? 2 : 3);
    CheckShape("sin_cache", sin.shape, cos.shape);
    if (cos.shape.size() < 2) Fail("cos_cache", "shape " + Text(cos.shape), "two or three dimensions");
    const int64_t pairs = cos.shape.back();
    int64_t heads = heads_;
    if (heads == 0 && in.shape.size() == 3 && pairs > 0 && dimensions_ == 0) heads = in.shape[2] / (2 * pairs);
    const HeadsTensor x = HeadsOf("input", in, in.shape.size() == 4 ? 0 : heads);
    if (2 * pairs > x.size || x.size > hip::kMostHeadSize || (dimensions_ > 0 && dimensions_ != 2 * pairs)) {
      Fail("cos_cache", "shape " + Text(cos.shape),
           "as many pairs as half of rotary_embedding_dim, of heads of " + std::to_string(x.size) + ", at most " +
               std::to_string(hip::kMostHeadSize) + ", numbers");
    }
    const Tensor out = call.Output(0, in.shape);
    if (!out.data) return;
    hip::AppendArgs append{};
    append.part[0] = PartOf(x, out.data);
    append.part[0].to_strides = x.strides;
    append.part[0].rotary = 1;
    append.cos = cos.data;
    append.sin = sin.data;
    append.batch = static_cast<unsigned>(x.batch);
    append.length = static_cast<unsigned>(x.positions);
    append.positions = static_cast<unsigned>(ElementsOf(cos.shape) / pairs);
    append.pairs = static_cast<unsigned>(pairs);
    append.interleaved = interleaved_;
    SetPositions(call, x, cos, &append);
    Check(kernels().Append(call.stream(), append));
  }

  void SetPositions(const NodeCall& call, const HeadsTensor& x, const Tensor& cos, hip::AppendArgs* append) const {
    const size_t index = onnx_ ? 3 : 1;
    if (!call.Has(index)) {  // an angle for every position of every batch
      CheckShape("cos_cache", cos.shape, {x.batch, x.positions, cos.shape.back()});
      append->rotation_batch = static_cast<int>(x.positions);
      return;
    }
    const Tensor ids = call.Input(index);
    append->ids = static_cast<const long long*>(ids.data);
    if (ElementsOf(ids.shape) == 1 && ids.shape.size() == 1) return;  // of the first position
    CheckShape("position_ids", ids.shape, {x.batch, x.positions});
    append->ids_position = 1;
    append->ids_batch = x.positions;
  }

  const bool onnx_;
  const int64_t heads_, dimensions_;
  const bool interleaved_;
};

}  // namespace

void AddRotaryEmbedding(Rows& rows) {
  const std::vector<std::pair<const char*, Types>> types = {{"T", FloatTypes()},
                                                            {"M", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}}};
  rows.push_back({"", "RotaryEmbedding", 23, kNewest, types, Create<RotaryEmbedding>, RotaryEmbedding::WhyLeft});
  rows.push_back({"com.microsoft", "RotaryEmbedding", 1, 1, types, Create<RotaryEmbedding>, RotaryEmbedding::WhyLeft});
}

}  // namespace mxort::provider
