#include "device/device_weights.h"

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "kernels/content_cache.h"
#include "kernels/fingerprint.h"
#include "kernels/hip/preshuffle.h"
#include "kernels/parallel.h"

namespace mxort::device {
namespace {

constexpr size_t kStagingBytes = size_t{8} << 20;

}  // namespace

// Panels are shuffled into pinned memory and copied from there, a piece after the other: the host never holds a second
// copy of the weights.
Status DeviceWeights::Upload(const MatMulSpec& spec, const HostWeights& host) {
  const int64_t n = spec.N / host.groups, of_group = hip::PanelsOf(n), panels = host.groups * of_group;
  const size_t record_bytes = static_cast<size_t>(host.groups) * hip::WeightRecordBytes(spec.weight_format, n, spec.K);
  const size_t vector_bytes = static_cast<size_t>(spec.N) * sizeof(float);
  bytes_ = Aligned(record_bytes) + Aligned(vector_bytes) + vector_bytes;
  MXORT_RETURN_IF_ERROR(memory_.Allocate(arena_, bytes_, nullptr));
  auto* base = static_cast<uint8_t*>(memory_.data());
  column_scale_ = reinterpret_cast<const float*>(base + Aligned(record_bytes));
  bias_ = reinterpret_cast<const float*>(base + Aligned(record_bytes) + Aligned(vector_bytes));

  const size_t panel_bytes = record_bytes / static_cast<size_t>(panels);
  const int64_t at_once = std::clamp<int64_t>(static_cast<int64_t>(kStagingBytes / panel_bytes), 1, panels);
  const auto pinned = Arena::Create(device(), 0, Arena::Kind::kPinned);
  Buffer staging;
  MXORT_RETURN_IF_ERROR(staging.Allocate(pinned, static_cast<size_t>(at_once) * panel_bytes, nullptr));
  const int ordinal = device()->ordinal();
  for (int64_t panel = 0; panel < panels; panel += at_once) {
    const int64_t end = std::min(panels, panel + at_once);
    auto* pinned_panels = static_cast<uint8_t*>(staging.data());
    ThreadedFor(0)(end - panel, [&](int64_t i) {
      const int64_t row = (panel + i) / of_group * n, first = (panel + i) % of_group;
      const int64_t blocks = row * BlocksOf(spec.K);
      hip::PreshuffleWeights(
          spec.weight_format,
          {host.weights.codes + blocks * BlockBytes(spec.weight_format), host.weights.scales + blocks}, n, spec.K,
          first, first + 1, pinned_panels + static_cast<size_t>(i) * panel_bytes);
    });
    MXORT_RETURN_IF_ERROR(Copy(ordinal, base + static_cast<size_t>(panel) * panel_bytes, kHost, staging.data(),
                               static_cast<size_t>(end - panel) * panel_bytes, nullptr));
  }
  MXORT_RETURN_IF_ERROR(
      Copy(ordinal, const_cast<float*>(column_scale_), kHost, host.column_scale, vector_bytes, nullptr));
  return Copy(ordinal, const_cast<float*>(bias_), kHost, host.bias, vector_bytes, nullptr);
}

Status SharedDeviceWeights(const std::shared_ptr<Arena>& arena, const MatMulSpec& spec, const HostWeights& host,
                           std::shared_ptr<const DeviceWeights>* weights) {
  using Key = std::tuple<const Device*, WeightFormat, int64_t, int64_t, int64_t, Fingerprint, Fingerprint, Fingerprint,
                         Fingerprint>;
  static auto& cache = *new ContentCache<Key, DeviceWeights>;
  const auto scale_bytes = static_cast<size_t>(spec.N * BlocksOf(spec.K));
  const auto vector_bytes = static_cast<size_t>(spec.N) * sizeof(float);
  const Key key{arena->device().get(),
                spec.weight_format,
                spec.K,
                spec.N,
                host.groups,
                FingerprintOf(host.weights.codes, scale_bytes * static_cast<size_t>(BlockBytes(spec.weight_format))),
                FingerprintOf(host.weights.scales, scale_bytes),
                FingerprintOf(host.column_scale, vector_bytes),
                FingerprintOf(host.bias, vector_bytes)};
  Status status;
  *weights = cache.Get(key, [&] {
    std::unique_ptr<DeviceWeights> made(new DeviceWeights(arena));
    status = made->Upload(spec, host);
    if (!status.ok()) made.reset();
    return made;
  });
  return status;
}

}  // namespace mxort::device
