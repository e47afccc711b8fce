#include "provider/ops/attention.h"

#include <cmath>

namespace mxort::provider {
namespace {

constexpr size_t kCutAlignment = 256;

DataType DataTypeOf(ONNXTensorElementDataType type) {
  switch (DeviceType(type)) {
    case hip::Type::kFloat:
      return DataType::kFloat;
    case hip::Type::kFloat16:
      return DataType::kFloat16;
    case hip::Type::kBFloat16:
      return DataType::kBFloat16;
    default:
      throw std::invalid_argument("got tensor type " + std::to_string(type) + ", expected one of the float types");
  }
}

}  // namespace

HeadsTensor PositionMajor(const void* data, int64_t batch, int64_t positions, int64_t heads, int64_t size) {
  return {data, batch, positions, heads, size, device::PositionMajor(positions, heads, size)};
}
HeadsTensor HeadMajor(const void* data, int64_t batch, int64_t positions, int64_t heads, int64_t size) {
  return {data, batch, positions, heads, size, device::HeadMajor(positions, heads, size)};
}

HeadsTensor HeadsOf(const char* what, const Tensor& tensor, int64_t heads) {
  const Shape& shape = tensor.shape;
  if (shape.size() == 3 && heads > 0 && shape[2] % heads == 0) {
    return PositionMajor(tensor.data, shape[0], shape[1], heads, shape[2] / heads);
  }
  if (shape.size() == 4 && (heads == 0 || shape[1] == heads)) {
    return HeadMajor(tensor.data, shape[0], shape[2], shape[1], shape[3]);
  }
  Fail(what, "shape " + Text(shape),
       "[batch, length, " + std::to_string(heads) + " heads] or [batch, " + std::to_string(heads) +
           ", length, head size]");
}

size_t Cuts::Add(size_t bytes) {
  const size_t offset = bytes_;
  bytes_ += (bytes + kCutAlignment - 1) / kCutAlignment * kCutAlignment;
  return offset;
}

float ScaleOr(float scale, int64_t head_size) {
  return scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_size));
}

AttentionNode::AttentionNode(const NodeInfo& node, hip::CacheFormat format)
    : NodeKernel(node), bytes_(BytesOf(node.InputType(0))) {
  Check(device::AttentionKernels::Load(ep().device(), DataTypeOf(node.InputType(0)), format, &kernels_));
}

hip::AttentionArgs AttentionNode::ArgsOf(const HeadsTensor& q, const HeadsTensor& k, const HeadsTensor& v,
                                         const HeadsTensor& y, float scale) const {
  hip::AttentionArgs args{};
  args.q = q.data;
  args.k = k.data;
  args.v = v.data;
  args.y = const_cast<void*>(y.data);
  args.q_strides = q.strides;
  args.k_strides = k.strides;
  args.v_strides = v.strides;
  args.y_strides = y.strides;
  args.batch = static_cast<unsigned>(q.batch);
  args.heads = static_cast<unsigned>(q.heads);
  args.kv_heads = static_cast<unsigned>(k.heads);
  args.length = static_cast<unsigned>(q.positions);
  args.keys = static_cast<unsigned>(k.positions);
  args.head_size = static_cast<unsigned>(q.size);
  args.value_size = static_cast<unsigned>(v.size);
  args.scale = scale;
  return args;
}

void AttentionNode::SetMask(const NodeCall& call, const Tensor& mask, bool pads, hip::AttentionArgs* args) const {
  const Shape full = {args->batch, args->heads, args->length, args->keys};
  int64_t strides[4] = {}, stride = 1;
  bool fits = mask.shape.size() <= full.size();
  for (size_t i = 0; fits && i < mask.shape.size(); ++i) {
    const size_t to = full.size() - 1 - i;
    const int64_t size = mask.shape[mask.shape.size() - 1 - i];
    const bool fewer = pads && i == 0 && size < full[to];
    fits = size == full[to] || fewer || size == 1;
    strides[to] = size == 1 && !fewer ? 0 : stride;
    stride *= size;
  }
  if (!fits) Fail("mask", "shape " + Text(mask.shape), "one that broadcasts to " + Text(full));
  args->mask = mask.data;
  args->mask_type = static_cast<int>(call.TypeOf(mask));
  args->mask_batch = strides[0];
  args->mask_head = strides[1];
  args->mask_position = strides[2];
  args->mask_key = static_cast<int>(strides[3]);
  args->mask_keys = strides[3] ? static_cast<unsigned>(mask.shape.back()) : args->keys;
}

hip::AppendPart AttentionNode::PartOf(const HeadsTensor& from, void* to) {
  hip::AppendPart part{};
  part.from = from.data;
  part.to = to;
  part.from_strides = from.strides;
  part.to_strides = device::PositionMajor(from.positions, from.heads, from.size);
  part.heads = static_cast<unsigned>(from.heads);
  part.size = static_cast<unsigned>(from.size);
  return part;
}

size_t AttentionNode::BytesOfHeads(const HeadsTensor& heads) const {
  return static_cast<size_t>(heads.batch * heads.positions * heads.heads * heads.size) * bytes_;
}

}  // namespace mxort::provider
