// Compiled against the headers of ONNX Runtime 1.21 too, like custom_op.cc.
#include "ops/attention_op.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/kernel_table.h"
#include "kernels/vector_functions.h"
#include "ops/custom_op_base.h"
#include "ops/ort_status.h"
#include "ops/spec.h"

namespace mxort {
namespace {

// Operators by what their caches hold, and what they know beyond the first.
struct CacheOperator {
  const char* name;
  CacheFormat format;
  bool window, sink;  // an attribute; an input
};
constexpr CacheOperator kCacheOperators[] = {
    {"GroupQueryAttention", CacheFormat::kFloat, false, false},
    {"GroupQueryAttentionMXFP8", CacheFormat::kMxfp8, false, false},
    {"GroupQueryAttentionMXFP4", CacheFormat::kMxfp4, false, false},
    {"WindowGroupQueryAttention", CacheFormat::kFloat, true, false},
    {"WindowGroupQueryAttentionMXFP8", CacheFormat::kMxfp8, true, false},
    {"WindowGroupQueryAttentionMXFP4", CacheFormat::kMxfp4, true, false},
    {"SinkGroupQueryAttention", CacheFormat::kFloat, true, true},
    {"SinkGroupQueryAttentionMXFP8", CacheFormat::kMxfp8, true, true},
    {"SinkGroupQueryAttentionMXFP4", CacheFormat::kMxfp4, true, true},
};
constexpr const char* kDenseName = "MultiHeadAttention";

enum Input { kQkv, kPastKey, kPastValue, kLast, kTotal, kCos, kSin, kSink, kInputs };
size_t InputCount(const CacheOperator& op) { return op.sink ? kInputs : kSink; }
enum Output { kY, kPresentKey, kPresentValue, kOutputs };

// Output `index` of a shape.
void* MakeOutput(const OrtApi& api, OrtKernelContext* context, size_t index, const Shape& shape) {
  OrtValue* value = nullptr;
  void* data = nullptr;
  Check(api, api.KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
  Check(api, api.GetTensorMutableData(value, &data));
  return data;
}

class AttentionKernel {
 public:
  AttentionKernel(const AttentionOp& op, const OrtKernelInfo* info)
      : api_(*op.api), where_(Where(op, info)), operator_(kCacheOperators[op.which]), format_(operator_.format) {
    const KernelAttributes attributes(api_, info);
    spec_.heads = attributes.Required("num_heads");
    spec_.kv_heads = attributes.Required("kv_num_heads");
    CheckDimension("num_heads", spec_.heads);
    CheckDimension("kv_num_heads", spec_.kv_heads);
    if (spec_.heads % spec_.kv_heads != 0) {
      Fail("attribute num_heads", std::to_string(spec_.heads),
           "a multiple of kv_num_heads, " + std::to_string(spec_.kv_heads));
    }
    attributes.Float("scale", &spec_.scale);
    attributes.Float("softcap", &spec_.softcap);
    int64_t rotary = 0, interleaved = 0;
    attributes.Int("do_rotary", &rotary);
    attributes.Int("rotary_interleaved", &interleaved);
    spec_.rotary = rotary != 0;
    spec_.interleaved = interleaved != 0;
    int64_t window = -1;
    if (operator_.window) attributes.Int("local_window_size", &window);
    if (window == 0 || window < -1) Fail("attribute local_window_size", std::to_string(window), "-1, or 1 or more");
    spec_.window = std::max<int64_t>(window, 0);
    functions_ = &SelectFunctions(DetectCpu(), KernelOverride());
  }

  static std::string Where(const AttentionOp& op, const OrtKernelInfo* info) {
    return std::string(kCacheOperators[op.which].name) + " '" + NodeName(*op.api, info) + "'";
  }
  const std::string& where() const { return where_; }
  const OrtApi& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    std::array<Tensor, kInputs> in;
    for (size_t i = 0; i < InputCount(operator_); ++i) in[i] = ReadTensor(api_, InputValue(api_, context, i));
    std::vector<int64_t> past;
    AttentionCall call = Checked(in, &past);
    const Shape cache = {call.batch, spec_.kv_heads, call.present_capacity, in[kPastKey].shape[3]};
    const Shape y = {call.batch, call.length, spec_.heads * call.head_size};
    call.y = static_cast<float*>(MakeOutput(api_, context, kY, y));
    call.present_key = static_cast<char*>(MakeOutput(api_, context, kPresentKey, cache));
    call.present_value = static_cast<char*>(MakeOutput(api_, context, kPresentValue, cache));
    Attention(call,
              [&](int64_t tasks, const std::function<void(int64_t)>& body) { Parallel(api_, context, tasks, body); });
  }

 private:
  // The call as far as the inputs give it. Throws std::invalid_argument.
  AttentionCall Checked(const std::array<Tensor, kInputs>& in, std::vector<int64_t>* past) const {
    const Shape &qkv = in[kQkv].shape, &cache = in[kPastKey].shape, &cos = in[kCos].shape;
    const int64_t all_heads = spec_.heads + 2 * spec_.kv_heads;
    const int64_t multiple = format_ == CacheFormat::kFloat ? kHeadVector : kBlockSize;
    if (qkv.size() != 3 || qkv[2] == 0 || qkv[2] % (all_heads * multiple) != 0) {
      Fail(
          "input query", "shape " + Text(qkv),
          "[batch, length, " + std::to_string(all_heads) + " heads of a multiple of " + std::to_string(multiple) + "]");
    }
    AttentionCall call{};
    call.spec = spec_;
    call.kernel = functions_->attend_keys;
    call.quantize = functions_->quantize;
    call.format = format_;
    call.batch = qkv[0];
    call.length = qkv[1];
    call.head_size = qkv[2] / all_heads;
    const int64_t row_bytes = CacheRowBytes(format_, call.head_size);
    const int64_t elements = format_ == CacheFormat::kFloat ? call.head_size : row_bytes;
    call.past_capacity = cache.size() == 4 ? cache[2] : 0;
    CheckShape("past_key", cache, {call.batch, spec_.kv_heads, call.past_capacity, elements});
    CheckShape("past_value", in[kPastValue].shape, cache);
    int64_t lengths = 1, totals = 1;
    for (const int64_t d : in[kLast].shape) lengths *= d;
    for (const int64_t d : in[kTotal].shape) totals *= d;
    if (lengths != call.batch) CheckShape("seqlens_k", in[kLast].shape, {call.batch});
    if (totals != 1) CheckShape("total_sequence_length", in[kTotal].shape, {1});
    const int64_t total = *static_cast<const int32_t*>(in[kTotal].data);
    if (total < call.length) {
      Fail("input total_sequence_length", std::to_string(total),
           "the length, " + std::to_string(call.length) + ", or more");
    }
    call.present_capacity = std::max(call.past_capacity, total);
    for (int64_t b = 0; b < call.batch; ++b) {  // of a first prompt, nothing is in the cache
      const int64_t length = int64_t{static_cast<const int32_t*>(in[kLast].data)[b]} + 1;
      past->push_back(call.length == total ? 0 : length - call.length);
      if (past->back() < 0 || past->back() + call.length > total || past->back() > call.past_capacity) {
        Fail("input seqlens_k", std::to_string(length - 1),
             "at least " + std::to_string(call.length - 1) + ", and no more than " + std::to_string(total - 1) +
                 " or the cache of " + std::to_string(call.past_capacity) + " holds");
      }
    }
    call.rotary_pairs = cos.size() == 2 ? cos[1] : 0;
    CheckShape("sin_cache", in[kSin].shape, cos);
    if (spec_.rotary && (cos.size() != 2 || cos[0] < total || 2 * cos[1] > call.head_size)) {
      Fail("input cos_cache", "shape " + Text(cos),
           "at least " + std::to_string(total) + " positions of at most " + std::to_string(call.head_size / 2) +
               " pairs");
    }
    call.qkv = static_cast<const float*>(in[kQkv].data);
    call.past_key = static_cast<const char*>(in[kPastKey].data);
    call.past_value = static_cast<const char*>(in[kPastValue].data);
    call.cos = static_cast<const float*>(in[kCos].data);
    call.sin = static_cast<const float*>(in[kSin].data);
    if (operator_.sink) {
      CheckShape("head_sink", in[kSink].shape, {spec_.heads});
      call.sink = static_cast<const float*>(in[kSink].data);
    }
    call.past = past->data();
    return call;
  }

  const OrtApi& api_;
  const std::string where_;
  const CacheOperator& operator_;
  const CacheFormat format_;
  AttentionSpec spec_;
  const VectorFunctions* functions_;
};

// MultiHeadAttention: y = softmax(scale q k^T + mask) v for each head; all but the mask are [batch, length, heads,
// size].
class DenseKernel {
 public:
  DenseKernel(const AttentionOp& op, const OrtKernelInfo* info) : api_(*op.api), where_(Where(op, info)) {
    KernelAttributes(api_, info).Float("scale", &scale_);
    kernel_ = SelectFunctions(DetectCpu(), KernelOverride()).attend_keys;
  }

  static std::string Where(const AttentionOp& op, const OrtKernelInfo* info) {
    return std::string(kDenseName) + " '" + NodeName(*op.api, info) + "'";
  }
  const std::string& where() const { return where_; }
  const OrtApi& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    std::array<Tensor, 4> in;
    for (size_t i = 0; i < in.size(); ++i) in[i] = ReadTensor(api_, InputValue(api_, context, i));
    const Shape &q = in[0].shape, &k = in[1].shape;
    if (q.size() != 4 || q[2] == 0 || q[3] == 0 || q[3] % kHeadVector != 0) {
      Fail("input query", "shape " + Text(q),
           "[batch, length, heads, a multiple of " + std::to_string(kHeadVector) + "]");
    }
    DenseAttentionCall call{};
    call.keys = k.size() == 4 ? k[1] : 0;
    CheckShape("key", k, {q[0], call.keys, q[2], q[3]});
    CheckShape("value", in[2].shape, k);
    call.kernel = kernel_;
    call.batch = q[0];
    call.length = q[1];
    call.heads = q[2];
    call.head_size = q[3];
    call.scale = scale_;
    const Shape full = {call.batch, call.heads, call.length, call.keys};
    Strides(in[3].shape, full, call.mask_strides);
    call.query = static_cast<const float*>(in[0].data);
    call.key = static_cast<const float*>(in[1].data);
    call.value = static_cast<const float*>(in[2].data);
    call.mask = static_cast<const float*>(in[3].data);
    call.y = static_cast<float*>(MakeOutput(api_, context, 0, q));
    DenseAttention(
        call, [&](int64_t tasks, const std::function<void(int64_t)>& body) { Parallel(api_, context, tasks, body); });
  }

 private:
  // Strides with which a mask is broadcast to `full`. Throws std::invalid_argument where it cannot be.
  static void Strides(const Shape& mask, const Shape& full, int64_t* strides) {
    int64_t stride = 1;
    bool fits = mask.size() <= full.size();
    for (size_t i = 0; i < full.size(); ++i) {
      const size_t to = full.size() - 1 - i;
      const int64_t dimension = i < mask.size() ? mask[mask.size() - 1 - i] : 1;
      fits = fits && (dimension == 1 || dimension == full[to]);
      strides[to] = dimension == 1 ? 0 : stride;
      stride *= dimension;
    }
    if (!fits) Fail("input mask", "shape " + Text(mask), "one that broadcasts to " + Text(full));
  }

  const OrtApi& api_;
  const std::string where_;
  float scale_ = 1;
  AttendKeys kernel_;
};

// Without it nothing behind the operator has a shape, and onnxruntime-genai 0.18 falls over logits of unknown rank.
void InferShapes(const OrtApi& api, OrtShapeInferContext* context) {
  Dimensions y = InputDimensions(api, context, kQkv);
  const int64_t heads = InferredInt(api, context, "num_heads"), shared = InferredInt(api, context, "kv_num_heads");
  if (y.sizes.size() == 3) {
    const int64_t all_heads = heads + 2 * shared, width = y.sizes[2];
    y.sizes[2] = width >= 0 && all_heads > 0 ? width / all_heads * heads : -1;
    y.names[2].clear();
    SetOutputDimensions(api, context, kY, y);
  }
  for (const auto& [input, output] : {std::pair{kPastKey, kPresentKey}, std::pair{kPastValue, kPresentValue}}) {
    Dimensions cache = InputDimensions(api, context, input);
    if (cache.sizes.size() != 4) continue;
    cache.sizes[2] = -1;  // it grows
    cache.names[2].clear();
    SetOutputDimensions(api, context, output, cache);
  }
}

size_t Which(const OrtCustomOp* op) { return static_cast<const AttentionOp*>(op)->which; }

ONNXTensorElementDataType CacheType(const OrtCustomOp* op, bool cache) {
  return cache && kCacheOperators[Which(op)].format != CacheFormat::kFloat ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                                                                           : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

template <class Kernel>
AttentionOp MakeOp(const OrtApi* api, uint32_t version) {
  AttentionOp op{};
  static_cast<OrtCustomOp&>(op) = BasicOp(version);
  op.api = api;
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatusPtr {
    const auto& made = *static_cast<const AttentionOp*>(self);
    return Guard(*made.api, Kernel::Where(made, info), [&] { *kernel = new Kernel(made, info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    const auto& self = *static_cast<const Kernel*>(kernel);
    return Guard(self.api(), self.where(), [&] { self.Compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  return op;
}

}  // namespace

std::vector<AttentionOp> AttentionOps(const OrtApi* api, uint32_t version) {
  std::vector<AttentionOp> ops;
  for (size_t which = 0; which < std::size(kCacheOperators); ++which) {
    AttentionOp op = MakeOp<AttentionKernel>(api, version);
    op.which = which;
    op.GetName = [](const OrtCustomOp* self) { return kCacheOperators[Which(self)].name; };
    op.GetInputTypeCount = [](const OrtCustomOp* self) -> size_t { return InputCount(kCacheOperators[Which(self)]); };
    op.GetInputType = [](const OrtCustomOp* self, size_t index) {
      if (index == kLast || index == kTotal) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
      return CacheType(self, index == kPastKey || index == kPastValue);
    };
    op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return kOutputs; };
    op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
      const OrtApi& ort = *static_cast<const AttentionOp*>(self)->api;
      return Guard(ort, kCacheOperators[Which(self)].name, [&] { InferShapes(ort, context); });
    };
    op.GetOutputType = [](const OrtCustomOp* self, size_t index) { return CacheType(self, index != kY); };
    ops.push_back(op);
  }
  return ops;
}

AttentionOp MakeDenseAttentionOp(const OrtApi* api, uint32_t version) {
  AttentionOp op = MakeOp<DenseKernel>(api, version);
  op.GetName = [](const OrtCustomOp*) { return kDenseName; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 4; };
  op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
    const OrtApi& ort = *static_cast<const AttentionOp*>(self)->api;
    return Guard(ort, kDenseName, [&] {
      const Dimensions y = InputDimensions(ort, context, 0);
      if (!y.sizes.empty()) SetOutputDimensions(ort, context, 0, y);
    });
  };
  op.GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  return op;
}

}  // namespace mxort
