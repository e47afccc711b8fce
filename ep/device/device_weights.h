// The constant inputs of a MatMulMXFP4 on a device, in the layout of the kernels, once per content.
#ifndef MXORT_DEVICE_DEVICE_WEIGHTS_H_
#define MXORT_DEVICE_DEVICE_WEIGHTS_H_

#include <cstddef>
#include <memory>

#include "device/arena.h"
#include "device/status.h"
#include "kernels/kernel.h"

namespace mxort::device {

// The operator's constant inputs in host memory; needed only during the call they are given to.
struct HostWeights {
  Weights weights;                      // codes [N, blocks * 16], scales [N, blocks]
  const float* column_scale = nullptr;  // [N]
  const float* bias = nullptr;          // [N]
  int64_t groups = 1;                   // of experts: N is that of all, and records of each begin with a panel
};

class DeviceWeights {
 public:
  const void* records() const { return memory_.data(); }  // hip/layout.h
  const float* column_scale() const { return column_scale_; }
  const float* bias() const { return bias_; }
  size_t bytes() const { return bytes_; }  // of device memory
  const std::shared_ptr<Device>& device() const { return arena_->device(); }

 private:
  friend Status SharedDeviceWeights(const std::shared_ptr<Arena>& arena, const MatMulSpec& spec,
                                    const HostWeights& host, std::shared_ptr<const DeviceWeights>* weights);
  explicit DeviceWeights(std::shared_ptr<Arena> arena) : arena_(std::move(arena)) {}
  Status Upload(const MatMulSpec& spec, const HostWeights& host);

  const std::shared_ptr<Arena> arena_;
  Buffer memory_;
  const float* column_scale_ = nullptr;
  const float* bias_ = nullptr;
  size_t bytes_ = 0;
};

// Uploads, or hands out what another session of this process has uploaded of the same content to the same device (then
// from that session's arena, which stays as long as the weights are used). The weights are there when it returns. Host
// memory needed: one pinned piece of some megabytes.
Status SharedDeviceWeights(const std::shared_ptr<Arena>& arena, const MatMulSpec& spec, const HostWeights& host,
                           std::shared_ptr<const DeviceWeights>* weights);

}  // namespace mxort::device

#endif  // MXORT_DEVICE_DEVICE_WEIGHTS_H_
