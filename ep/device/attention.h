// Attention on a device: kernels loaded once, then launched.
//
//   Append: new queries, keys and values biased, normalised, rotated -> queries, cache     (where there is any of that)
//   Copy:   what was in another cache -> cache                                             (where it is another one)
//   MoveWindow: what a step leaves in a cache that holds a window
//   Attend: queries, cache -> Y; of few rows in several ranges of keys, whose sums a second kernel joins
// A row is a query of one head.
#ifndef MXORT_DEVICE_ATTENTION_H_
#define MXORT_DEVICE_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "device/device.h"
#include "device/kernel.h"
#include "device/status.h"
#include "kernels/hip/args_attention.h"
#include "kernels/kernel.h"

namespace mxort::device {

// Why there is no attention of heads of this size; empty: there is. Sizes are those of q and k, and of v.
std::string WhyNoAttention(int64_t head_size, int64_t value_size, hip::CacheFormat format);

// Strides of [batch, positions, heads, size] and [batch, heads, positions, size].
hip::HeadStrides PositionMajor(int64_t positions, int64_t heads, int64_t size);
hip::HeadStrides HeadMajor(int64_t positions, int64_t heads, int64_t size);

// Kernels for tensors of a type and a cache's format. Any number of threads and streams at once; launches enqueue, wait
// for nothing, allocate nothing and may be captured.
class AttentionKernels {
 public:
  static Status Load(const std::shared_ptr<Device>& device, DataType type, hip::CacheFormat format,
                     AttentionKernels* kernels);

  // All of AttentionArgs but partial, heads' grouping, tiles, splits and type, which follow from the rest. Null
  // pointers where there is nothing. Pointers to q, k, v, y are multiples of 16 bytes, as are their strides.
  size_t WorkspaceBytes(const hip::AttentionArgs& args) const;
  Status Attend(void* stream, const hip::AttentionArgs& args, void* workspace) const;
  // All of AppendArgs but type.
  Status Append(void* stream, hip::AppendArgs args) const;
  // All of CopyCacheArgs but groups.
  Status Copy(void* stream, hip::CopyCacheArgs args, unsigned batch) const;
  // Rows are multiples of 16 bytes.
  Status MoveWindow(void* stream, const hip::WindowArgs& args, unsigned batch) const;

 private:
  static constexpr size_t kSizes = 4;
  bool IsMany(const hip::AttentionArgs& args) const;
  hip::AttentionArgs Completed(const hip::AttentionArgs& args) const;
  Status Check(const hip::AttentionArgs& args) const;

  DataType type_ = DataType::kFloat;
  hip::CacheFormat format_ = hip::CacheFormat::kPlain;
  int compute_units_ = 0;
  Kernel few_[kSizes], many_[kSizes], merge_, append_, copy_, window_;
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_ATTENTION_H_
