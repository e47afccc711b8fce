// GroupQueryAttention of com.microsoft, and the mxort operators of that name, whose caches may be quantised.
#include <algorithm>
#include <array>

#include "device/tensor_check.h"
#include "provider/ops/attention.h"

namespace mxort::provider {
namespace {

constexpr size_t kAbsent = 99;

// Where an operator has its inputs.
struct Inputs {
  size_t query = 0, key, value, past_key, past_value, lengths, total, cos, sin, ids, mask, sink, q_norm, k_norm;
};
constexpr Inputs kMicrosoft = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15};
constexpr Inputs kOwn = {0, kAbsent, kAbsent, 1, 2, 3, 4, 5, 6, kAbsent, kAbsent, kAbsent, kAbsent, kAbsent};
constexpr Inputs kOwnSink = {0, kAbsent, kAbsent, 1, 2, 3, 4, 5, 6, kAbsent, kAbsent, 7, kAbsent, kAbsent};
constexpr size_t kKeyScale = 12, kValueScale = 13, kScores = 3;  // of com.microsoft's inputs and outputs

hip::CacheFormat FormatOf(const std::string& type) {
  const auto ends = [&](const std::string& end) {
    return type.size() >= end.size() && type.compare(type.size() - end.size(), end.size(), end) == 0;
  };
  if (ends("MXFP8")) return hip::CacheFormat::kMxfp8;
  if (ends("MXFP4")) return hip::CacheFormat::kMxfp4;
  return hip::CacheFormat::kPlain;
}

class GroupQueryAttention : public AttentionNode {
 public:
  GroupQueryAttention(const NodeInfo& node, const Inputs& inputs)
      : AttentionNode(node, FormatOf(node.row.type)),
        in_(inputs),
        format_(FormatOf(node.row.type)),
        heads_(node.attributes.Required("num_heads")),
        kv_heads_(node.attributes.Required("kv_num_heads")),
        causal_(node.Int("causal", 1) != 0),
        rotary_(node.Int("do_rotary", 0) != 0),
        interleaved_(node.Int("rotary_interleaved", 0) != 0),
        smooth_(node.Int("smooth_softmax", 0) > 0),
        window_(node.Int("local_window_size", -1)),
        holds_window_(node.Int("sliding_window_cache", 0) != 0),
        scale_(node.Float("scale", 0)),
        softcap_(node.Float("softcap", 0)),
        epsilon_(node.Float("qk_norm_epsilon", 1e-6f)) {
    CheckDimension("num_heads", heads_);
    CheckDimension("kv_num_heads", kv_heads_);
    if (heads_ % kv_heads_ != 0) {
      Fail("attribute num_heads", std::to_string(heads_), "a multiple of kv_num_heads, " + std::to_string(kv_heads_));
    }
  }

 private:
  // What a call gives: queries, keys and values as they come in, and the cache.
  struct Step {
    HeadsTensor q, k, v;
    Tensor past_key, past_value, present_key, present_value;
    int64_t total = 0, past_capacity = 0, capacity = 0, row = 0;  // row: elements, or bytes where quantised
    bool first = false;            // a prompt with nothing before it, whatever the lengths say
    hip::DeviceLengths lengths{};  // of all positions
    // Where the step works: in the cache, or where that holds a window and several positions come in, in a buffer with
    // room for what it holds and these.
    bool staged = false;
    int64_t rows = 0;
    hip::DeviceLengths seen{};  // of positions there
  };

  void Run(NodeCall& call) override {
    Step step = Read(call);
    const Tensor out = call.Output(0, {step.q.batch, step.q.positions, heads_ * step.q.size});
    const Shape cache = {step.q.batch, kv_heads_, step.capacity, step.row};
    step.present_key = call.Output(1, cache);
    step.present_value = call.Output(2, cache);
    if (!out.data) return;

    Cuts cuts;
    const bool rotates = rotary_ || call.Has(in_.q_norm);
    // A cache that nobody asked for, and queries that change on their way.
    const auto bytes_of = [&](int64_t positions) {
      return static_cast<size_t>(step.q.batch * kv_heads_ * positions * step.row) * CacheElementBytes();
    };
    const size_t cache_bytes = bytes_of(step.capacity), stage_bytes = bytes_of(step.rows);
    const size_t key_at = cuts.Add(step.present_key.data ? 0 : cache_bytes);
    const size_t value_at = cuts.Add(step.present_value.data ? 0 : cache_bytes);
    const size_t staged_key_at = cuts.Add(step.staged ? stage_bytes : 0);
    const size_t staged_value_at = cuts.Add(step.staged ? stage_bytes : 0);
    const size_t query_at = cuts.Add(rotates ? BytesOfHeads(step.q) : 0);
    hip::AttentionArgs args = ArgsOf(step.q, CacheOf(step, nullptr), CacheOf(step, nullptr),
                                     PositionMajor(out.data, step.q.batch, step.q.positions, heads_, step.q.size),
                                     ScaleOr(scale_, step.q.size));
    args.value_size = args.head_size;
    SetSeen(call, step, &args);
    const size_t partial_at = cuts.Add(kernels().WorkspaceBytes(args));
    cuts.Allocate(call);
    if (!step.present_key.data) step.present_key.data = cuts.At(key_at);
    if (!step.present_value.data) step.present_value.data = cuts.At(value_at);
    const Tensor present_key = step.present_key, present_value = step.present_value;
    if (step.staged) {
      step.present_key.data = cuts.At(staged_key_at);
      step.present_value.data = cuts.At(staged_value_at);
    }
    args.k = step.present_key.data;
    args.v = step.present_value.data;
    if (rotates) {
      args.q = cuts.At(query_at);
      args.q_strides = device::PositionMajor(step.q.positions, heads_, step.q.size);
    }
    if (holds_window_ && !step.staged && !step.first) {
      MoveWindow(call, step, step.past_key, step.past_value, present_key, present_value);
    } else {
      CopyPast(call, step);
    }
    Append(call, step, rotates ? cuts.At(query_at) : nullptr);
    Check(kernels().Attend(call.stream(), args, cuts.At(partial_at)));
    if (step.staged) MoveWindow(call, step, step.present_key, step.present_value, present_key, present_value);
  }

  Step Read(const NodeCall& call) const {
    Step step;
    const Tensor query = call.Input(in_.query);
    if (query.shape.size() != 3) Fail("query", "shape " + Text(query.shape), "[batch, length, numbers]");
    const int64_t batch = query.shape[0], length = query.shape[1];
    if (call.Has(in_.key)) {
      step.q = HeadsOf("query", query, heads_);
      step.k = HeadsOf("key", call.Input(in_.key), kv_heads_);
      step.v = HeadsOf("value", call.Input(in_.value), kv_heads_);
    } else {
      const int64_t all = heads_ + 2 * kv_heads_;
      const HeadsTensor packed = HeadsOf("query", query, all);
      const auto part = [&](int64_t from, int64_t count) {
        HeadsTensor heads = packed;
        heads.data = static_cast<const char*>(packed.data) + static_cast<size_t>(from * packed.size) * element_bytes();
        heads.heads = count;
        return heads;
      };
      step.q = part(0, heads_);
      step.k = part(heads_, kv_heads_);
      step.v = part(heads_ + kv_heads_, kv_heads_);
    }
    const std::string why = device::WhyNoAttention(step.q.size, step.q.size, format_);
    if (!why.empty()) throw std::invalid_argument("query: " + why);
    CheckShape("key", {step.k.batch, step.k.positions, step.k.size}, {batch, length, step.q.size});
    CheckShape("value", {step.v.batch, step.v.positions, step.v.size}, {batch, length, step.q.size});
    step.row = RowElements(step.q.size);
    const std::vector<int64_t> total = call.HostInts(in_.total);
    if (total.size() != 1 || total[0] < length) {
      Fail("total_sequence_length", Text(total), "one number, the length " + std::to_string(length) + " or more");
    }
    step.total = total[0];
    if (call.Has(in_.past_key)) {
      step.past_key = call.Input(in_.past_key);
      step.past_value = call.Input(in_.past_value);
      const Shape& past = step.past_key.shape;
      step.past_capacity = past.size() == 4 ? past[2] : 0;
      CheckShape("past_key", past, {batch, kv_heads_, step.past_capacity, step.row});
      CheckShape("past_value", step.past_value.shape, past);
    }
    step.capacity = std::max(step.past_capacity, holds_window_ ? 0 : step.total);
    step.first = length == step.total;
    const Tensor lengths = call.Input(in_.lengths);
    if (ElementsOf(lengths.shape) != batch) CheckShape("seqlens_k", lengths.shape, {batch});
    step.lengths = {static_cast<const int*>(lengths.data), 1, 1, 0, 0, 0};
    step.rows = step.capacity;
    if (holds_window_) Stage(&step);
    if (step.first) {
      step.seen = {};
    } else if (!holds_window_) {
      step.seen = step.lengths;
    }
    return step;
  }

  // Of a cache that holds a window: where the step works.
  void Stage(Step* step) const {
    if (step->capacity < window_) {
      Fail("past_key", "room for " + std::to_string(step->capacity) + " positions",
           "local_window_size, " + std::to_string(window_) + ", or more");
    }
    const int64_t length = step->q.positions;
    if (length > 1 && !step->first && step->q.batch != 1) {
      Fail("query", std::to_string(length) + " positions of " + std::to_string(step->q.batch) + " sequences",
           "one of either behind others");
    }
    step->staged = step->first ? length > step->capacity : length > 1;
    if (step->staged) step->rows = step->first ? length : step->capacity + length;
    step->seen = step->lengths;
    step->seen.capacity = static_cast<int>(step->capacity);
    step->seen.window = static_cast<int>(window_);
    step->seen.fresh = step->staged ? static_cast<int>(length) : 0;
  }

  void MoveWindow(const NodeCall& call, const Step& step, const Tensor& from_key, const Tensor& from_value,
                  const Tensor& to_key, const Tensor& to_value) const {
    hip::WindowArgs move{};
    move.from[0] = from_key.data;
    move.from[1] = from_value.data;
    move.to[0] = to_key.data;
    move.to[1] = to_value.data;
    move.lengths = step.lengths;
    move.length = static_cast<unsigned>(step.q.positions);
    move.kv_heads = static_cast<unsigned>(kv_heads_);
    move.row_bytes = static_cast<unsigned>(static_cast<size_t>(step.row) * CacheElementBytes());
    move.from_capacity = static_cast<unsigned>(step.staged ? step.rows : step.past_capacity);
    move.capacity = static_cast<int>(step.capacity);
    move.window = static_cast<int>(window_);
    move.staged = step.staged;
    move.first = step.first;
    move.clear = to_key.data != step.past_key.data || to_value.data != step.past_value.data;
    Check(kernels().MoveWindow(call.stream(), move, static_cast<unsigned>(step.q.batch)));
  }

  int64_t RowElements(int64_t size) const {
    if (format_ == hip::CacheFormat::kPlain) return size;
    return (format_ == hip::CacheFormat::kMxfp8 ? size : size / 2) + size / kBlockSize;
  }
  size_t CacheElementBytes() const { return format_ == hip::CacheFormat::kPlain ? element_bytes() : 1; }
  HeadsTensor CacheOf(const Step& step, const void* data) const {
    return HeadMajor(data, step.q.batch, step.rows, kv_heads_, step.row);
  }

  void CopyPast(const NodeCall& call, const Step& step) const {
    const auto same = [](const Tensor& a, const Tensor& b) { return a.data == b.data; };
    if (same(step.past_key, step.present_key) && same(step.past_value, step.present_value)) return;
    if (step.first && (step.past_capacity == 0 || step.staged)) return;  // all of it is new
    const auto bytes = static_cast<unsigned>(static_cast<size_t>(step.row) * CacheElementBytes());
    hip::CopyCacheArgs copy{};
    copy.from[0] = step.past_key.data;
    copy.from[1] = step.past_value.data;
    copy.to[0] = step.present_key.data;
    copy.to[1] = step.present_value.data;
    copy.row_bytes[0] = copy.row_bytes[1] = bytes;
    copy.lengths = step.seen;
    copy.length = static_cast<unsigned>(step.q.positions);
    copy.kv_heads = static_cast<unsigned>(kv_heads_);
    copy.from_capacity = static_cast<unsigned>(step.past_capacity);
    copy.to_capacity = static_cast<unsigned>(step.rows);
    Check(kernels().Copy(call.stream(), copy, static_cast<unsigned>(step.q.batch)));
  }

  void Append(const NodeCall& call, const Step& step, void* queries) const {
    hip::AppendArgs append{};
    append.part[0] = PartOf(step.q, queries);
    append.part[1] = PartOf(step.k, step.present_key.data);
    append.part[2] = PartOf(step.v, step.present_value.data);
    for (int i = 1; i < 3; ++i) {
      append.part[i].to_strides = CacheOf(step, nullptr).strides;
      append.part[i].past = 1;
      append.part[i].format = static_cast<int>(format_);
    }
    if (call.Has(in_.q_norm)) {
      append.part[0].norm = call.Input(in_.q_norm).data;
      append.part[1].norm = call.Input(in_.k_norm).data;
    }
    append.lengths = step.seen;
    append.batch = static_cast<unsigned>(step.q.batch);
    append.length = static_cast<unsigned>(step.q.positions);
    append.capacity = static_cast<unsigned>(step.rows);
    append.interleaved = interleaved_;
    append.epsilon = epsilon_;
    if (rotary_) SetRotary(call, step, &append);
    Check(kernels().Append(call.stream(), append));
  }

  void SetRotary(const NodeCall& call, const Step& step, hip::AppendArgs* append) const {
    const Tensor cos = call.Input(in_.cos), sin = call.Input(in_.sin);
    CheckShape("sin_cache", sin.shape, cos.shape);
    if (cos.shape.size() != 2 || cos.shape[0] < step.total || 2 * cos.shape[1] > step.q.size) {
      Fail("cos_cache", "shape " + Text(cos.shape),
           "at least " + std::to_string(step.total) + " positions of at most " + std::to_string(step.q.size / 2) +
               " pairs");
    }
    append->part[0].rotary = append->part[1].rotary = 1;
    append->cos = cos.data;
    append->sin = sin.data;
    append->positions = static_cast<unsigned>(cos.shape[0]);
    append->pairs = static_cast<unsigned>(cos.shape[1]);
    if (!call.Has(in_.ids)) return;
    const Tensor ids = call.Input(in_.ids);
    if (step.first) {
      if (ElementsOf(ids.shape) < 1) Fail("position_ids", "shape " + Text(ids.shape), "a number");
    } else {
      CheckShape("position_ids", ids.shape, {step.q.batch, step.q.positions});
    }
    append->ids = static_cast<const long long*>(ids.data);
    append->ids_position = !step.first;  // of a first prompt only the first number counts
    append->ids_batch = step.first ? 0 : step.q.positions;
  }

  // Which keys a query sees, and what else goes into the softmax.
  void SetSeen(const NodeCall& call, const Step& step, hip::AttentionArgs* args) const {
    args->causal = causal_;
    args->window = window_ > 0 ? static_cast<int>(window_) : 0;
    args->softcap = softcap_;
    args->smooth = smooth_;
    args->lengths = step.seen;
    args->from_end = !step.first;
    if (step.first) args->keys = args->length;
    if (call.Has(in_.sink)) {
      const Tensor sink = call.Input(in_.sink);
      CheckShape("head_sink", sink.shape, {heads_});
      args->sink = sink.data;
    }
    if (!call.Has(in_.mask)) return;
    const Tensor mask = call.Input(in_.mask);
    const unsigned keys = args->keys;
    args->keys = static_cast<unsigned>(step.total);  // what the mask counts
    SetMask(call, mask, false, args);
    args->keys = keys;
  }

  const Inputs in_;
  const hip::CacheFormat format_;
  const int64_t heads_, kv_heads_;
  const bool causal_, rotary_, interleaved_, smooth_;
  const int64_t window_;
  const bool holds_window_;
  const float scale_, softcap_, epsilon_;
};

std::string WhyLeft(const Ep&, const NodeView& node) {
  if (node.Has(kKeyScale) || node.Has(kValueScale)) return "its cache is quantised with scales of its own";
  if (node.Has(kMicrosoft.past_key) && node.InputType(kMicrosoft.past_key) != node.InputType(kMicrosoft.query)) {
    return "its cache is of another type";
  }
  if (node.IntOr("sliding_window_cache", 0)) {
    if (node.IntOr("local_window_size", -1) <= 0) return "its cache holds a window of no size";
    if (!node.Has(kMicrosoft.past_key)) return "its cache holds a window and is not there";
    if (node.Has(kMicrosoft.mask)) return "its cache holds a window and it has an attention_bias";
  }
  if (node.HasOutput(kScores)) return "its scores are asked for";
  if (node.Has(kMicrosoft.q_norm) != node.Has(kMicrosoft.k_norm)) return "one of its norms is missing";
  if (node.IntOr("do_rotary", 0) && !(node.Has(kMicrosoft.cos) && node.Has(kMicrosoft.sin)))
    return "it has no cos_cache";
  const Shape query = node.InputShape(kMicrosoft.query);
  const int64_t heads = node.Required("num_heads"), shared = node.Required("kv_num_heads");
  const int64_t all = node.Has(kMicrosoft.key) ? heads : heads + 2 * shared;
  if (query.size() != 3 || query[2] < 0 || all <= 0) return {};
  const int64_t size = query[2] / all;
  const std::string why = device::WhyNoAttention(size, size, hip::CacheFormat::kPlain);
  return why.empty() ? why : "it has " + why;
}

std::unique_ptr<NodeKernel> CreateMicrosoft(const NodeInfo& node) {
  return std::make_unique<GroupQueryAttention>(node, kMicrosoft);
}
std::unique_ptr<NodeKernel> CreateOwn(const NodeInfo& node) {
  return std::make_unique<GroupQueryAttention>(node,
                                               std::string(node.row.type).rfind("Sink", 0) == 0 ? kOwnSink : kOwn);
}

}  // namespace

void AddGroupQueryAttention(Rows& rows) {
  OpRow microsoft{"com.microsoft",
                  "GroupQueryAttention",
                  1,
                  1,
                  {{"T", FloatTypes()}, {"M", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32}}},
                  CreateMicrosoft,
                  WhyLeft};
  microsoft.host_inputs = {kMicrosoft.total};
  rows.push_back(microsoft);
  constexpr std::array<const char*, 3> kPlain = {"GroupQueryAttention", "WindowGroupQueryAttention",
                                                 "SinkGroupQueryAttention"};
  constexpr std::array<const char*, 3> kMxfp8 = {"GroupQueryAttentionMXFP8", "WindowGroupQueryAttentionMXFP8",
                                                 "SinkGroupQueryAttentionMXFP8"};
  constexpr std::array<const char*, 3> kMxfp4 = {"GroupQueryAttentionMXFP4", "WindowGroupQueryAttentionMXFP4",
                                                 "SinkGroupQueryAttentionMXFP4"};
  for (const auto& [names, kernels] :
       {std::pair(kPlain, device::kAttentionKernels), std::pair(kMxfp8, device::kMxfp8AttentionKernels),
        std::pair(kMxfp4, device::kMxfp4AttentionKernels)}) {
    for (const char* name : names) {
      OpRow own{kDomain, name, 1, 1, {}, CreateOwn};
      own.kernels = kernels;
      own.host_inputs = {kOwn.total};
      rows.push_back(own);
    }
  }
}

}  // namespace mxort::provider
