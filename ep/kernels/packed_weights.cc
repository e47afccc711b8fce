#include "kernels/packed_weights.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "kernels/content_cache.h"
#include "kernels/fingerprint.h"
#include "kernels/layout.h"
#include "kernels/packed_folder.h"
#include "kernels/weight_memory.h"

namespace mxort {
namespace {

constexpr int64_t kTaskBytes = 1 << 20;  // a millisecond of packing

// The scales of strips [begin, end) as a layout holds them.
template <class F>
ScaleRange ScalesOf(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end) {
  const int64_t blocks = BlocksOf(spec.K);
  ScaleRange range = {kScaleBias, kScaleBias};
  for (int64_t i = begin * kStripColumns * blocks; i < std::min(spec.N, end * kStripColumns) * blocks; ++i) {
    int scale;
    if constexpr (CodeBits<F>() == 4) {
      scale = CanonicalScale(weights.codes + i * PackedBytes<F>(), weights.scales[i]);
    } else {
      uint8_t codes[kBlockSize];
      UnpackBlock<F>(weights.codes + i * PackedBytes<F>(), codes);
      scale = CanonicalScaleOf<F>(codes, weights.scales[i]);
    }
    range = {std::min(range.lowest, scale), std::max(range.highest, scale)};
  }
  return range;
}
ScaleRange Scales(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end) {
  return WithElement(spec.weight_format,
                     [&](auto element) { return ScalesOf<decltype(element)>(spec, weights, begin, end); });
}

ScaleRange Pack(const MatMulSpec& spec, const WeightLayout& layout, const Weights& weights, const ParallelFor& parallel,
                uint8_t* packed) {
  const int64_t strips = StripsOf(spec.N);
  const int64_t tasks = std::clamp<int64_t>(static_cast<int64_t>(layout.bytes(spec)) / kTaskBytes, 1, strips);
  std::vector<ScaleRange> ranges(static_cast<size_t>(tasks));
  parallel(tasks, [&](int64_t task) {
    const int64_t begin = strips * task / tasks, end = strips * (task + 1) / tasks;
    layout.pack(spec, weights, begin, end, packed);
    ranges[static_cast<size_t>(task)] = Scales(spec, weights, begin, end);
  });
  ScaleRange occurring = {kScaleBias, kScaleBias};
  for (const ScaleRange& range : ranges) {
    occurring = {std::min(occurring.lowest, range.lowest), std::max(occurring.highest, range.highest)};
  }
  return occurring;
}

std::unique_ptr<PackedWeights> PackedInFolder(const PackedFolder& folder, const PackedFolder::Contents& contents,
                                              const WeightLayout& layout, const Weights& weights,
                                              const ParallelFor& parallel) {
  ScaleRange occurring = {};
  std::shared_ptr<const uint8_t> data = folder.Map(
      contents, &occurring, [&](uint8_t* packed) { return Pack(contents.spec, layout, weights, parallel, packed); });
  return std::make_unique<PackedWeights>(std::move(data), contents.bytes, occurring);
}

}  // namespace

PackedWeights::PackedWeights(const MatMulSpec& spec, const WeightLayout& layout, const Weights& weights,
                             const ParallelFor& parallel)
    : bytes_(layout.bytes(spec)) {
  const std::shared_ptr<uint8_t> memory = AllocateWeights(bytes_);
  scales_ = Pack(spec, layout, weights, parallel, memory.get());
  data_ = memory;
}

std::shared_ptr<const PackedWeights> SharedPackedWeights(const MatMulSpec& spec, const WeightLayout& layout,
                                                         const Weights& weights, const ParallelFor& parallel) {
  using Key = std::tuple<std::string_view, WeightFormat, int64_t, int64_t, Fingerprint, Fingerprint>;
  static auto& cache = *new ContentCache<Key, PackedWeights>;
  const std::optional<PackedFolder> folder = PackedFolder::OfEnvironment();
  const auto fingerprint = [&](const uint8_t* data, size_t bytes) {
    return folder ? FingerprintAt(folder->points(), data, bytes) : FingerprintOf(data, bytes);
  };
  const auto scale_bytes = static_cast<size_t>(spec.N * BlocksOf(spec.K));
  const auto code_bytes = scale_bytes * static_cast<size_t>(BlockBytes(spec.weight_format));
  const Fingerprint codes = fingerprint(weights.codes, code_bytes), scales = fingerprint(weights.scales, scale_bytes);
  return cache.Get({layout.name, spec.weight_format, spec.K, spec.N, codes, scales}, [&] {
    return folder ? PackedInFolder(*folder, {codes, scales, layout.name, spec, layout.bytes(spec)}, layout, weights,
                                   parallel)
                  : std::make_unique<PackedWeights>(spec, layout, weights, parallel);
  });
}

}  // namespace mxort
