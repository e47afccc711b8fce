#include "device/attention.h"

#include <algorithm>
#include <array>
#include <string>

#include "kernels/float16.h"

namespace mxort::device {
namespace {

constexpr std::array<unsigned, 4> kHeadSizes = {64, 96, 128, 256};  // that kernels are compiled for
constexpr int64_t kSizeMultiple = 8;                                // of heads: loads of 16 bytes
constexpr int64_t kMostExtent = int64_t{1} << 31;                   // bytes of a head of keys
constexpr int64_t kMostGroups = 65535;                              // HIP: of a grid's second dimension
constexpr unsigned kKeysWorthASplit = 256;
constexpr unsigned kMostSplits = 64;
constexpr unsigned kGroupsPerUnit = 2;  // workgroups that a compute unit holds
constexpr unsigned kThreads = 256;
constexpr unsigned kLanes = 64;    // of a wave
constexpr unsigned kFewRows = 64;  // up to so many rows of a head of keys, reading keys several times costs less
constexpr uintptr_t kAlignment = 16;

const char* TypeName(DataType type) {
  return type == DataType::kFloat ? "float" : type == DataType::kFloat16 ? "float16" : "bfloat16";
}
unsigned CeilDiv(unsigned a, unsigned b) { return (a + b - 1) / b; }
size_t SizeIndex(const hip::AttentionArgs& args) {
  const unsigned size = std::max(args.head_size, args.value_size);
  return static_cast<size_t>(std::find_if(kHeadSizes.begin(), kHeadSizes.end(), [&](unsigned s) { return size <= s; }) -
                             kHeadSizes.begin());
}
// Waves of a workgroup of attention_prefill.hip, which says so.
unsigned WavesOfMany(DataType type, const hip::AttentionArgs& args) {
  const unsigned size = kHeadSizes[SizeIndex(args)];
  return type != DataType::kFloat && (size == 64 || size == 128) ? 8 : 4;
}
Status Invalid(const std::string& message) { return {ErrorCode::kInvalidArgument, message}; }

}  // namespace

std::string WhyNoAttention(int64_t head_size, int64_t value_size, hip::CacheFormat format) {
  const int64_t multiple = format == hip::CacheFormat::kPlain ? kSizeMultiple : kBlockSize;
  for (const int64_t size : {head_size, value_size}) {
    if (size > 0 && size <= hip::kMostHeadSize && size % multiple == 0) continue;
    return "heads of " + std::to_string(size) + " numbers, expected a multiple of " + std::to_string(multiple) +
           " up to " + std::to_string(hip::kMostHeadSize);
  }
  return {};
}

hip::HeadStrides PositionMajor(int64_t positions, int64_t heads, int64_t size) {
  return {positions * heads * size, heads * size, size};
}
hip::HeadStrides HeadMajor(int64_t positions, int64_t heads, int64_t size) {
  return {positions * heads * size, size, positions * size};
}

Status AttentionKernels::Load(const std::shared_ptr<Device>& device, DataType type, hip::CacheFormat format,
                              AttentionKernels* kernels) {
  kernels->type_ = type;
  kernels->format_ = format;
  kernels->compute_units_ = device->info().compute_units;
  if (format == hip::CacheFormat::kPlain) {
    for (size_t i = 0; i < kHeadSizes.size(); ++i) {
      const std::string name = std::string(TypeName(type)) + "_" + std::to_string(kHeadSizes[i]);
      MXORT_RETURN_IF_ERROR(Kernel::Load(device, "attention", "attention_" + name, &kernels->few_[i]));
      MXORT_RETURN_IF_ERROR(Kernel::Load(device, "attention_prefill", "prefill_" + name, &kernels->many_[i]));
    }
  } else {
    const std::string name = format == hip::CacheFormat::kMxfp8 ? "attention_mxfp8_" : "attention_mxfp4_";
    for (size_t i = 0; i < kHeadSizes.size(); ++i) {
      const unsigned size = kHeadSizes[i] == 96 ? 128 : kHeadSizes[i];  // a slice of 96 / 16 would have two scales
      MXORT_RETURN_IF_ERROR(Kernel::Load(device, "attention_mx", name + std::to_string(size), &kernels->few_[i]));
    }
  }
  MXORT_RETURN_IF_ERROR(Kernel::Load(device, "attention", "attention_merge", &kernels->merge_));
  MXORT_RETURN_IF_ERROR(Kernel::Load(device, "attention_append", "attention_append", &kernels->append_));
  MXORT_RETURN_IF_ERROR(Kernel::Load(device, "attention_append", "attention_window", &kernels->window_));
  return Kernel::Load(device, "attention_append", "attention_copy", &kernels->copy_);
}

bool AttentionKernels::IsMany(const hip::AttentionArgs& args) const {
  return format_ == hip::CacheFormat::kPlain && args.length * (args.heads / args.kv_heads) > kFewRows;
}

hip::AttentionArgs AttentionKernels::Completed(const hip::AttentionArgs& args) const {
  hip::AttentionArgs all = args;
  all.type = static_cast<int>(type_);
  all.group = args.heads / args.kv_heads;
  all.splits = 1;
  const unsigned rows = args.length * all.group;
  if (IsMany(args)) {
    all.tiles = CeilDiv(rows, WavesOfMany(type_, args) * hip::kPrefillRows);
    return all;
  }
  all.tiles = CeilDiv(rows, hip::kAttentionRows);
  const unsigned groups = std::max(1u, args.batch * args.kv_heads * all.tiles);
  const unsigned wanted = static_cast<unsigned>(compute_units_) * kGroupsPerUnit / groups;
  all.splits = std::clamp(std::min(wanted, CeilDiv(args.keys, kKeysWorthASplit)), 1u, kMostSplits);
  return all;
}

size_t AttentionKernels::WorkspaceBytes(const hip::AttentionArgs& args) const {
  const hip::AttentionArgs all = Completed(args);
  if (all.splits == 1) return 0;
  return size_t{all.batch} * all.kv_heads * all.tiles * all.splits * hip::kAttentionRows * (all.value_size + 2) *
         sizeof(float);
}

Status AttentionKernels::Check(const hip::AttentionArgs& args) const {
  const std::string why = WhyNoAttention(args.head_size, args.value_size, format_);
  if (!why.empty()) return {ErrorCode::kUnsupported, "attention of " + why};
  const int64_t stride = std::max(args.k_strides.position, args.v_strides.position);
  if (args.keys * stride * static_cast<int64_t>(DataTypeBytes(type_)) >= kMostExtent) {
    return {ErrorCode::kUnsupported, "attention over " + std::to_string(args.keys) + " keys that are " +
                                         std::to_string(stride) + " elements apart: more than 2 GiB of a head"};
  }
  if (int64_t{args.batch} * args.kv_heads > kMostGroups) {
    return {ErrorCode::kUnsupported, "attention of " + std::to_string(args.batch) + " x " +
                                         std::to_string(args.kv_heads) + " heads of keys, expected at most 65535"};
  }
  for (const void* p : {args.q, args.k, args.v, static_cast<const void*>(args.y)}) {
    if (reinterpret_cast<uintptr_t>(p) % kAlignment) {
      return Invalid("attention: got an address that is no multiple of 16 bytes");
    }
  }
  return {};
}

Status AttentionKernels::Attend(void* stream, const hip::AttentionArgs& args, void* workspace) const {
  if (args.batch == 0 || args.length == 0 || args.heads == 0) return {};
  MXORT_RETURN_IF_ERROR(Check(args));
  hip::AttentionArgs all = Completed(args);
  all.partial = static_cast<float*>(workspace);
  const unsigned heads = all.batch * all.kv_heads;
  if (IsMany(args)) {
    const unsigned threads = WavesOfMany(type_, args) * kLanes;
    return many_[SizeIndex(all)].Launch({all.tiles, heads, 1}, threads, stream, &all);
  }
  MXORT_RETURN_IF_ERROR(few_[SizeIndex(all)].Launch({all.tiles * all.splits, heads, 1}, kThreads, stream, &all));
  return all.splits == 1 ? Status() : merge_.Launch({all.tiles, heads, 1}, kThreads, stream, &all);
}

Status AttentionKernels::Append(void* stream, hip::AppendArgs args) const {
  args.type = static_cast<int>(type_);
  const unsigned heads = args.part[0].heads + args.part[1].heads + args.part[2].heads;
  const unsigned groups = CeilDiv(heads, hip::kAttentionWaves);
  return append_.Launch({args.batch * args.length * groups, 1, 1}, kThreads, stream, &args);
}

Status AttentionKernels::Copy(void* stream, hip::CopyCacheArgs args, unsigned batch) const {
  constexpr uint64_t kBytesOfGroup = kThreads * 16 * 8;
  const uint64_t bytes = uint64_t{args.to_capacity} * std::max(args.row_bytes[0], args.row_bytes[1]);
  args.groups = static_cast<unsigned>(std::clamp<uint64_t>(bytes / kBytesOfGroup, 1, kMostSplits));
  return copy_.Launch({args.groups, batch * args.kv_heads, 1}, kThreads, stream, &args);
}

Status AttentionKernels::MoveWindow(void* stream, const hip::WindowArgs& args, unsigned batch) const {
  const unsigned pieces = CeilDiv(args.row_bytes, hip::kWindowPiece);
  return window_.Launch({2 * pieces, batch * args.kv_heads, 1}, kThreads, stream, &args);
}

}  // namespace mxort::device
