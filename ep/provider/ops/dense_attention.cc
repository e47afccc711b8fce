// Attention of ONNX, MultiHeadAttention of com.microsoft and of mxort: caches, where there are any, grow by what comes
// in.
#include <cmath>
#include <limits>

#include "provider/ops/attention.h"

namespace mxort::provider {
namespace {

class DenseAttention : public AttentionNode {
 protected:
  explicit DenseAttention(const NodeInfo& node) : AttentionNode(node) {}

  // Inputs and outputs by what an operator calls them, and biases [heads, size] that are added to q, k and v.
  struct Growth {
    const Tensor *past_key = nullptr, *past_value = nullptr;
    Tensor present_key, present_value;
    const void* bias[3] = {};
  };
  // Makes q, keys and values ready: where nothing is added and no cache is asked for they are used where they are.
  // `args`: all but q, k, v and their strides, from which it takes what it needs of memory.
  void Attend(NodeCall& call, HeadsTensor q, HeadsTensor k, HeadsTensor v, const Growth& growth,
              hip::AttentionArgs args) const {
    const bool caches = growth.past_key || growth.present_key.data || growth.present_value.data;
    const bool own_keys = caches || growth.bias[1], own_values = caches || growth.bias[2];
    const int64_t past = growth.past_key ? growth.past_key->shape[2] : 0, keys = past + k.positions;
    HeadsTensor all_keys = HeadMajor(growth.present_key.data, k.batch, keys, k.heads, k.size);
    HeadsTensor all_values = HeadMajor(growth.present_value.data, v.batch, keys, v.heads, v.size);
    Cuts cuts;
    const size_t query_at = cuts.Add(growth.bias[0] ? BytesOfHeads(q) : 0);
    const size_t key_at = cuts.Add(own_keys && !all_keys.data ? BytesOfHeads(all_keys) : 0);
    const size_t value_at = cuts.Add(own_values && !all_values.data ? BytesOfHeads(all_values) : 0);
    const size_t partial_at = cuts.Add(kernels().WorkspaceBytes(args));
    cuts.Allocate(call);
    if (!all_keys.data) all_keys.data = cuts.At(key_at);
    if (!all_values.data) all_values.data = cuts.At(value_at);

    if (past > 0) CopyPast(call, growth, all_keys, all_values);
    hip::AppendArgs append{};
    append.part[0] = PartOf(q, growth.bias[0] ? cuts.At(query_at) : nullptr);
    append.part[1] = PartOf(k, own_keys ? const_cast<void*>(all_keys.data) : nullptr);
    append.part[2] = PartOf(v, own_values ? const_cast<void*>(all_values.data) : nullptr);
    append.part[1].to_strides = all_keys.strides;
    append.part[2].to_strides = all_values.strides;
    append.part[1].past = append.part[2].past = 1;
    for (int i = 0; i < 3; ++i) append.part[i].bias = growth.bias[i];
    append.past = static_cast<unsigned>(past);
    append.capacity = static_cast<unsigned>(keys);
    append.batch = static_cast<unsigned>(q.batch);
    AppendParts(call, append, q.positions, k.positions);
    if (growth.bias[0]) q = PositionMajor(cuts.At(query_at), q.batch, q.positions, q.heads, q.size);
    if (own_keys) k = all_keys;
    if (own_values) v = all_values;
    args.q = q.data;
    args.k = k.data;
    args.v = v.data;
    args.q_strides = q.strides;
    args.k_strides = k.strides;
    args.v_strides = v.strides;
    Check(kernels().Attend(call.stream(), args, cuts.At(partial_at)));
  }

 private:
  // In one launch where there are as many queries as keys.
  void AppendParts(const NodeCall& call, const hip::AppendArgs& all, int64_t queries, int64_t keys) const {
    const bool has_query = all.part[0].to, has_keys = all.part[1].to || all.part[2].to;
    for (const bool of_query : {true, false}) {
      const bool both = has_query && has_keys && queries == keys;
      if (!(of_query ? has_query : has_keys && !both)) continue;
      hip::AppendArgs append = all;
      append.length = static_cast<unsigned>(of_query ? queries : keys);
      if (of_query && !both) append.part[1].heads = append.part[2].heads = 0;
      if (!of_query) append.part[0].heads = 0;
      Check(kernels().Append(call.stream(), append));
    }
  }

  void CopyPast(const NodeCall& call, const Growth& growth, const HeadsTensor& keys, const HeadsTensor& values) const {
    hip::CopyCacheArgs copy{};
    copy.from[0] = growth.past_key->data;
    copy.from[1] = growth.past_value->data;
    copy.to[0] = const_cast<void*>(keys.data);
    copy.to[1] = const_cast<void*>(values.data);
    copy.row_bytes[0] = static_cast<unsigned>(static_cast<size_t>(keys.size) * element_bytes());
    copy.row_bytes[1] = static_cast<unsigned>(static_cast<size_t>(values.size) * element_bytes());
    copy.past = copy.from_capacity = static_cast<unsigned>(growth.past_key->shape[2]);
    copy.to_capacity = static_cast<unsigned>(keys.positions);
    copy.length = copy.to_capacity - copy.past;
    copy.kv_heads = static_cast<unsigned>(keys.heads);
    Check(kernels().Copy(call.stream(), copy, static_cast<unsigned>(keys.batch)));
  }
};

void CheckKeys(const HeadsTensor& q, const HeadsTensor& k, const HeadsTensor& v) {
  if (k.heads == 0 || q.heads % k.heads != 0) {
    Fail("heads of queries", std::to_string(q.heads), "a multiple of those of keys, " + std::to_string(k.heads));
  }
  CheckShape("key", {k.batch, k.size}, {q.batch, q.size});
  CheckShape("value", {v.batch, v.positions, v.heads}, {q.batch, k.positions, k.heads});
  const std::string why = device::WhyNoAttention(q.size, v.size, hip::CacheFormat::kPlain);
  if (!why.empty()) throw std::invalid_argument("query: " + why);
}

// ---- Attention of ONNX ----------------------------------------------------------------------------------------------

class OnnxAttention : public DenseAttention {
  enum { kQuery, kKey, kValue, kMask, kPastKey, kPastValue, kLengths };

 public:
  explicit OnnxAttention(const NodeInfo& node)
      : DenseAttention(node),
        heads_(node.Int("q_num_heads", 0)),
        kv_heads_(node.Int("kv_num_heads", 0)),
        causal_(node.Int("is_causal", 0) != 0),
        scale_(node.Float("scale", std::numeric_limits<float>::quiet_NaN())),
        softcap_(node.Float("softcap", 0)) {}

  static std::string WhyLeft(const Ep&, const NodeView& node) {
    if (node.HasOutput(3)) return "its scores are asked for";
    if (node.InputType(kQuery) != node.InputType(kValue)) return "its values are of another type than its queries";
    if (node.Has(kMask) && node.InputType(kMask) != ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL &&
        node.InputType(kMask) != node.InputType(kQuery)) {
      return "its mask is of another type than its queries";
    }
    const int64_t size = SizeOf(node.InputShape(kQuery), node.IntOr("q_num_heads", 0));
    const int64_t value_size = SizeOf(node.InputShape(kValue), node.IntOr("kv_num_heads", 0));
    if (size < 0 || value_size < 0) return {};
    const std::string why = device::WhyNoAttention(size, value_size, hip::CacheFormat::kPlain);
    return why.empty() ? why : "it has " + why;
  }

 private:
  // Of a head, as far as a node says; -1: not.
  static int64_t SizeOf(const Shape& shape, int64_t heads) {
    if (shape.size() == 4) return shape[3];
    return shape.size() == 3 && heads > 0 && shape[2] >= 0 ? shape[2] / heads : -1;
  }

  void Run(NodeCall& call) override {
    const Tensor query = call.Input(kQuery);
    const HeadsTensor q = HeadsOf("Q", query, heads_), k = HeadsOf("K", call.Input(kKey), kv_heads_),
                      v = HeadsOf("V", call.Input(kValue), kv_heads_);
    CheckKeys(q, k, v);
    const bool flat = query.shape.size() == 3;
    const Tensor out = call.Output(
        0, flat ? Shape{q.batch, q.positions, q.heads * v.size} : Shape{q.batch, q.heads, q.positions, v.size});
    Growth growth;
    Tensor past_key, past_value;
    int64_t past = 0;
    if (call.Has(kPastKey)) {
      past_key = call.Input(kPastKey);
      past_value = call.Input(kPastValue);
      past = past_key.shape.size() == 4 ? past_key.shape[2] : 0;
      CheckShape("past_key", past_key.shape, {q.batch, k.heads, past, k.size});
      CheckShape("past_value", past_value.shape, {q.batch, k.heads, past, v.size});
      growth.past_key = &past_key;
      growth.past_value = &past_value;
    }
    growth.present_key = call.Output(1, {q.batch, k.heads, past + k.positions, k.size});
    growth.present_value = call.Output(2, {q.batch, k.heads, past + k.positions, v.size});
    const HeadsTensor y = flat ? PositionMajor(out.data, q.batch, q.positions, q.heads, v.size)
                               : HeadMajor(out.data, q.batch, q.positions, q.heads, v.size);
    hip::AttentionArgs args = ArgsOf(q, k, v, y, std::isnan(scale_) ? ScaleOr(0, q.size) : scale_);
    args.keys = static_cast<unsigned>(past + k.positions);
    args.causal = causal_;
    args.softcap = softcap_;
    args.offset = static_cast<int>(past);
    if (call.Has(kLengths)) {
      const Tensor lengths = call.Input(kLengths);
      CheckShape("nonpad_kv_seqlen", lengths.shape, {q.batch});
      args.lengths = {static_cast<const int*>(lengths.data), 2, 0, 0, 0, 0};
      args.from_end = 1;
    }
    if (call.Has(kMask)) SetMask(call, call.Input(kMask), true, &args);
    if (out.data) Attend(call, q, k, v, growth, args);
  }

  const int64_t heads_, kv_heads_;
  const bool causal_;
  const float scale_, softcap_;  // scale: NaN where there is none
};

// ---- MultiHeadAttention of com.microsoft ----------------------------------------------------------------------------

class MultiHeadAttention : public DenseAttention {
  enum { kQuery, kKey, kValue, kBias, kPadding, kMask, kPastKey, kPastValue, kPastLength, kIndirection };

 public:
  explicit MultiHeadAttention(const NodeInfo& node)
      : DenseAttention(node),
        heads_(node.attributes.Required("num_heads")),
        causal_(node.Int("unidirectional", 0) != 0),
        scale_(node.Float("scale", 0)),
        filter_(node.Float("mask_filter_value", -10000.0f)) {
    CheckDimension("num_heads", heads_);
  }

  static std::string WhyLeft(const Ep&, const NodeView& node) {
    if (node.HasOutput(3)) return "its scores are asked for";
    if (node.Has(kPastLength) || node.Has(kIndirection)) return "its cache is one of beams";
    if (!node.Has(kKey) || !node.Has(kValue)) return "its keys or values are packed";
    const Shape query = node.InputShape(kQuery), key = node.InputShape(kKey), value = node.InputShape(kValue);
    if (query.size() == 5 || key.size() == 5) return "its keys or values are packed";
    if (node.Has(kPadding)) {
      const Shape padding = node.InputShape(kPadding);
      if (padding.size() == 1 && padding[0] > 1 && query.size() == 3 && padding[0] != query[0]) {
        return "its key_padding_mask is one of positions";
      }
    }
    const int64_t heads = node.Required("num_heads");
    if (query.size() != 3 || value.size() != 3 || query[2] < 0 || value[2] < 0 || heads <= 0) return {};
    const std::string why = device::WhyNoAttention(query[2] / heads, value[2] / heads, hip::CacheFormat::kPlain);
    return why.empty() ? why : "it has " + why;
  }

 private:
  void Run(NodeCall& call) override {
    const HeadsTensor q = HeadsOf("query", call.Input(kQuery), heads_), k = HeadsOf("key", call.Input(kKey), heads_),
                      v = HeadsOf("value", call.Input(kValue), heads_);
    CheckKeys(q, k, v);
    const Tensor out = call.Output(0, {q.batch, q.positions, heads_ * v.size});
    Growth growth;
    Tensor past_key, past_value;
    int64_t past = 0;
    if (call.Has(kPastKey)) {
      past_key = call.Input(kPastKey);
      past_value = call.Input(kPastValue);
      past = past_key.shape.size() == 4 ? past_key.shape[2] : 0;
      CheckShape("past_key", past_key.shape, {q.batch, heads_, past, k.size});
      CheckShape("past_value", past_value.shape, {q.batch, heads_, past, v.size});
      growth.past_key = &past_key;
      growth.past_value = &past_value;
    }
    growth.present_key = call.Output(1, {q.batch, heads_, past + k.positions, k.size});
    growth.present_value = call.Output(2, {q.batch, heads_, past + k.positions, v.size});
    if (call.Has(kBias)) SetBias(call.Input(kBias), q.size, v.size, &growth);
    hip::AttentionArgs args =
        ArgsOf(q, k, v, PositionMajor(out.data, q.batch, q.positions, heads_, v.size), ScaleOr(scale_, q.size));
    args.keys = static_cast<unsigned>(past + k.positions);
    args.causal = causal_;
    args.offset = static_cast<int>(past);
    args.filter = filter_;
    if (call.Has(kPadding)) SetPadding(call.Input(kPadding), &args);
    if (call.Has(kMask)) SetMask(call, call.Input(kMask), false, &args);
    if (out.data) Attend(call, q, k, v, growth, args);
  }

  void SetBias(const Tensor& bias, int64_t size, int64_t value_size, Growth* growth) const {
    const int64_t begins[3] = {0, heads_ * size, 2 * heads_ * size};
    CheckShape("bias", bias.shape, {heads_ * (2 * size + value_size)});
    for (int i = 0; i < 3; ++i) {
      growth->bias[i] = static_cast<const char*>(bias.data) + static_cast<size_t>(begins[i]) * element_bytes();
    }
  }

  void SetPadding(const Tensor& padding, hip::AttentionArgs* args) const {
    const auto* data = static_cast<const int*>(padding.data);
    const int64_t batch = args->batch, length = args->length, keys = args->keys;
    const Shape& shape = padding.shape;
    if (shape == Shape{batch}) {
      args->lengths = {data, 1, 0, 0, 0, 0};
    } else if (shape == Shape{batch, keys}) {
      args->padding = data;
      args->padding_batch = keys;
    } else if (shape == Shape{batch, length, keys}) {
      args->padding = data;
      args->padding_batch = length * keys;
      args->padding_position = keys;
    } else {
      Fail("key_padding_mask", "shape " + Text(shape),
           Text({batch}) + ", " + Text({batch, keys}) + " or " + Text({batch, length, keys}));
    }
  }

  const int64_t heads_;
  const bool causal_;
  const float scale_, filter_;
};

// ---- MultiHeadAttention of mxort ------------------------------------------------------------------------------------

// All of [batch, length, heads, size]; a mask that broadcasts.
class PlainAttention : public DenseAttention {
 public:
  explicit PlainAttention(const NodeInfo& node) : DenseAttention(node), scale_(node.Float("scale", 1)) {}

 private:
  void Run(NodeCall& call) override {
    const HeadsTensor q = Read("query", call.Input(0)), k = Read("key", call.Input(1)),
                      v = Read("value", call.Input(2));
    CheckKeys(q, k, v);
    const Tensor out = call.Output(0, {q.batch, q.positions, q.heads, v.size});
    hip::AttentionArgs args = ArgsOf(q, k, v, PositionMajor(out.data, q.batch, q.positions, q.heads, v.size), scale_);
    SetMask(call, call.Input(3), false, &args);
    if (out.data) Attend(call, q, k, v, {}, args);
  }

  static HeadsTensor Read(const char* what, const Tensor& tensor) {
    const Shape& shape = tensor.shape;
    if (shape.size() != 4) Fail(what, "shape " + Text(shape), "[batch, length, heads, head size]");
    return PositionMajor(tensor.data, shape[0], shape[1], shape[2], shape[3]);
  }
  const float scale_;
};

}  // namespace

void AddDenseAttention(Rows& rows) {
  const Types ids = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32};
  Types masks = FloatTypes();
  masks.push_back(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL);
  rows.push_back({"",
                  "Attention",
                  23,
                  24,
                  {{"T1", FloatTypes()}, {"T2", FloatTypes()}, {"U", masks}},
                  Create<OnnxAttention>,
                  OnnxAttention::WhyLeft});
  rows.push_back({"com.microsoft",
                  "MultiHeadAttention",
                  1,
                  1,
                  {{"T", FloatTypes()}, {"M", ids}},
                  Create<MultiHeadAttention>,
                  MultiHeadAttention::WhyLeft});
  rows.push_back({kDomain, "MultiHeadAttention", 1, 1, {}, Create<PlainAttention>});
}

}  // namespace mxort::provider
