#include "kernels/packed_weights.h"

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <string_view>
#include <tuple>
#include <vector>

#include "kernels/layout.h"
#include "kernels/weight_memory.h"

namespace mxort {
namespace {

constexpr int64_t kTaskBytes = 1 << 20;  // a millisecond of packing

// The scales of strips [begin, end) as a layout holds them.
ScaleRange Scales(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end) {
  const int64_t blocks = BlocksOf(spec.K);
  ScaleRange range = {kScaleBias, kScaleBias};
  for (int64_t i = begin * kStripColumns * blocks; i < std::min(spec.N, end * kStripColumns) * blocks; ++i) {
    const int scale = CanonicalScale(weights.codes + i * kPackedBlockBytes, weights.scales[i]);
    range = {std::min(range.lowest, scale), std::max(range.highest, scale)};
  }
  return range;
}

}  // namespace

PackedWeights::PackedWeights(const MatMulSpec& spec, const WeightLayout& layout, const Weights& weights,
                             const ParallelFor& parallel)
    : bytes_(layout.bytes(spec)), scales_{kScaleBias, kScaleBias}, data_(AllocateWeights(bytes_)) {
  const int64_t strips = StripsOf(spec.N);
  const int64_t tasks = std::clamp<int64_t>(static_cast<int64_t>(bytes_) / kTaskBytes, 1, strips);
  std::vector<ScaleRange> ranges(static_cast<size_t>(tasks));
  parallel(tasks, [&](int64_t task) {
    const int64_t begin = strips * task / tasks, end = strips * (task + 1) / tasks;
    layout.pack(spec, weights, begin, end, data_.get());
    ranges[static_cast<size_t>(task)] = Scales(spec, weights, begin, end);
  });
  for (const ScaleRange& range : ranges) {
    scales_ = {std::min(scales_.lowest, range.lowest), std::max(scales_.highest, range.highest)};
  }
}

std::shared_ptr<const PackedWeights> SharedPackedWeights(const MatMulSpec& spec, const WeightLayout& layout,
                                                         const Weights& weights) {
  using Key = std::tuple<std::string_view, int64_t, int64_t, size_t, size_t>;
  // Leaked on purpose: kernels of a session may be destroyed after static destructors have run.
  static auto& mutex = *new std::mutex;
  static auto& cache = *new std::map<Key, std::weak_ptr<const PackedWeights>>;
  const auto hash = [](const uint8_t* p, int64_t n) {
    return std::hash<std::string_view>()({reinterpret_cast<const char*>(p), static_cast<size_t>(n)});
  };
  const int64_t scale_bytes = spec.N * BlocksOf(spec.K);
  const Key key{layout.name, spec.K, spec.N, hash(weights.codes, scale_bytes * kPackedBlockBytes),
                hash(weights.scales, scale_bytes)};
  const std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<const PackedWeights>& slot = cache[key];
  if (auto existing = slot.lock()) return existing;
  // The deleter drops the dead entry, so that the map does not grow with every model that was ever loaded.
  std::shared_ptr<const PackedWeights> packed(new PackedWeights(spec, layout, weights, ThreadedFor(0)),
                                              [key](const PackedWeights* p) {
                                                delete p;
                                                const std::lock_guard<std::mutex> inner(mutex);
                                                const auto it = cache.find(key);
                                                if (it != cache.end() && it->second.expired()) cache.erase(it);
                                              });
  slot = packed;
  return packed;
}

}  // namespace mxort
