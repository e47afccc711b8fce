// The MatMul operators on the CPU: chosen kernel, packed weights, work split over the caller's threads.
#ifndef MXORT_KERNELS_MATMUL_H_
#define MXORT_KERNELS_MATMUL_H_

#include <functional>
#include <memory>
#include <vector>

#include "kernels/kernel.h"
#include "kernels/kernel_table.h"

namespace mxort {

// Runs body(0) .. body(tasks - 1), in any order, possibly at the same time, and returns when all are done.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t)>& body)>;
void SerialFor(int64_t tasks, const std::function<void(int64_t)>& body);

// Weights in a kernel's layout, 64-byte aligned.
class PackedWeights {
 public:
  PackedWeights(const MatMulSpec& spec, const WeightLayout& layout, const Weights& weights);
  const uint8_t* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }
  bool plain_scales() const { return plain_scales_; }  // Kernel::needs_plain_scales

 private:
  struct Free {
    void operator()(uint8_t* p) const;
  };
  size_t bytes_;
  bool plain_scales_ = true;
  std::unique_ptr<uint8_t[], Free> data_;
};

// Packs, or hands out what another session of this process has packed of the same content.
std::shared_ptr<const PackedWeights> SharedPackedWeights(const MatMulSpec& spec, const WeightLayout& layout,
                                                         const Weights& weights);

// One call of the operator.
struct MatMulCall {
  const MatMulSpec* spec;
  const Kernels* kernels;
  const PackedWeights* packed;  // in the kernels' layout
  Weights weights;              // as the operator received them, for rows that the kernel declines
  const float* column_scale;    // [N]
  const float* bias;            // [N]
  DataType type;
  int64_t M;
  const void* a;  // [M, K]
  void* y;        // [M, N]
};
void MatMul(const MatMulCall& call, const ParallelFor& parallel);

}  // namespace mxort

#endif  // MXORT_KERNELS_MATMUL_H_
