// Weights as the kernels read them, packed once for a process.
#ifndef MXORT_KERNELS_PACKED_WEIGHTS_H_
#define MXORT_KERNELS_PACKED_WEIGHTS_H_

#include <memory>
#include <utility>

#include "kernels/kernel.h"
#include "kernels/parallel.h"

namespace mxort {

// Weights in a kernel's layout, 64-byte aligned.
class PackedWeights {
 public:
  // In memory of this process.
  PackedWeights(const MatMulSpec& spec, const WeightLayout& layout, const Weights& weights,
                const ParallelFor& parallel);
  PackedWeights(std::shared_ptr<const uint8_t> data, size_t bytes, const ScaleRange& scales)
      : bytes_(bytes), scales_(scales), data_(std::move(data)) {}
  const uint8_t* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }
  const ScaleRange& scales() const { return scales_; }  // those that occur

 private:
  size_t bytes_;
  ScaleRange scales_;
  std::shared_ptr<const uint8_t> data_;
};

// Packs, or hands out what another session of this process has packed of the same content, or, where there is a folder
// for that (packed_folder.h), another process.
std::shared_ptr<const PackedWeights> SharedPackedWeights(const MatMulSpec& spec, const WeightLayout& layout,
                                                         const Weights& weights,
                                                         const ParallelFor& parallel = ThreadedFor(0));

}  // namespace mxort

#endif  // MXORT_KERNELS_PACKED_WEIGHTS_H_
