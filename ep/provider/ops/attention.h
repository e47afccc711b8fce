// What the attention operators share: where their tensors of heads lie, masks that broadcast, caches that grow.
#ifndef MXORT_PROVIDER_OPS_ATTENTION_H_
#define MXORT_PROVIDER_OPS_ATTENTION_H_

#include <vector>

#include "device/attention.h"
#include "provider/op_table.h"

namespace mxort::provider {

// A tensor of heads: [batch, positions, heads, size] in any order in memory.
struct HeadsTensor {
  const void* data = nullptr;
  int64_t batch = 0, positions = 0, heads = 0, size = 0;
  hip::HeadStrides strides{};
};
HeadsTensor PositionMajor(const void* data, int64_t batch, int64_t positions, int64_t heads, int64_t size);
HeadsTensor HeadMajor(const void* data, int64_t batch, int64_t positions, int64_t heads, int64_t size);
// [batch, positions, heads * size], or [batch, heads, positions, size]. Throws std::invalid_argument for other ranks.
HeadsTensor HeadsOf(const char* what, const Tensor& tensor, int64_t heads);

// Memory of one call, cut up: a captured run gives every call's memory once.
class Cuts {
 public:
  // Offset of so many bytes more.
  size_t Add(size_t bytes);
  void Allocate(NodeCall& call) { data_ = bytes_ ? call.Workspace(bytes_) : nullptr; }
  void* At(size_t offset) const { return static_cast<char*>(data_) + offset; }

 private:
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

// Base of the operators: kernels of the type of input 0.
class AttentionNode : public NodeKernel {
 protected:
  explicit AttentionNode(const NodeInfo& node, hip::CacheFormat format = hip::CacheFormat::kPlain);

  // q, k, v and y by their shapes; all else is nothing.
  hip::AttentionArgs ArgsOf(const HeadsTensor& q, const HeadsTensor& k, const HeadsTensor& v, const HeadsTensor& y,
                            float scale) const;
  // A mask that broadcasts to [batch, heads, length, keys]; `pads`: its keys may be fewer. Throws
  // std::invalid_argument.
  void SetMask(const NodeCall& call, const Tensor& mask, bool pads, hip::AttentionArgs* args) const;
  // A part of an append. Where it goes is position-major unless it is a cache.
  static hip::AppendPart PartOf(const HeadsTensor& from, void* to);
  size_t BytesOfHeads(const HeadsTensor& heads) const;

  const device::AttentionKernels& kernels() const { return kernels_; }
  size_t element_bytes() const { return bytes_; }

 private:
  device::AttentionKernels kernels_;
  size_t bytes_ = 0;
};

// The scale where the attribute is absent, or 0 in com.microsoft's.
float ScaleOr(float scale, int64_t head_size);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_OPS_ATTENTION_H_
