// Experts whose weights are packed when a row first chooses them, for machines that are smaller than the model.
#ifndef MXORT_KERNELS_LAZY_EXPERTS_H_
#define MXORT_KERNELS_LAZY_EXPERTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "kernels/kernel.h"
#include "kernels/packed_weights.h"
#include "kernels/parallel.h"

namespace mxort {

// Of one node. What is packed stays, in all nodes of the process together, up to a limit: then those go that were not
// used for longest, to be packed again when a row chooses them. Packed weights that a call uses stay for as long as it
// does, so that a call has what all experts of a node take if its rows choose them all.
class LazyExperts {
 public:
  static constexpr size_t kProducts = 2;
  struct Product {
    MatMulSpec spec;  // of all experts
    Weights weights;  // must outlive it
  };
  // The limit that the environment variable MXORT_LAZY_EXPERTS gives, in bytes; none where it is not set. Throws
  // std::invalid_argument where it is no number.
  static std::optional<size_t> LimitOfEnvironment();

  LazyExperts(const std::array<Product, kProducts>& products, const WeightLayout& layout, int64_t experts,
              size_t limit);
  LazyExperts(const LazyExperts&) = delete;
  LazyExperts& operator=(const LazyExperts&) = delete;
  ~LazyExperts();  // what no other node has is freed

  // By product, as many as `experts`: what is not there is packed, one by a thread. May be called by several threads.
  using Packed = std::shared_ptr<const PackedWeights>;
  using Held = std::array<std::vector<Packed>, kProducts>;
  Held Hold(const std::vector<int64_t>& experts, const ParallelFor& parallel);

 private:
  Packed Pack(size_t product, int64_t expert) const;

  std::array<Product, kProducts> products_;  // of one expert, the weights those of the first
  const WeightLayout& layout_;
  const size_t limit_;
  std::mutex mutex_;
  std::array<std::vector<std::weak_ptr<const PackedWeights>>, kProducts> slots_;  // by expert
};

}  // namespace mxort

#endif  // MXORT_KERNELS_LAZY_EXPERTS_H_
