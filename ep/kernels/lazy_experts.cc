#include "kernels/lazy_experts.h"

#include <cstdlib>
#include <list>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "kernels/weight_memory.h"

namespace mxort {
namespace {

constexpr const char* kVariable = "MXORT_LAZY_EXPERTS";

// The packed weights of all nodes of the process, by when they were used last.
class Recent {
 public:
  // Leaked on purpose: kernels of a session may be destroyed after static destructors have run.
  static Recent& Get() {
    static auto& recent = *new Recent;
    return recent;
  }

  void Keep(const LazyExperts::Held& used, size_t limit) {
    std::list<LazyExperts::Packed> dropped;  // destroyed when the lock is open again
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& product : used) {
      for (const LazyExperts::Packed& weights : product) MoveToFront(weights);
    }
    while (bytes_ > limit && !order_.empty()) Remove(std::prev(order_.end()), &dropped);
  }

  void Forget(const LazyExperts::Packed& weights) {
    std::list<LazyExperts::Packed> dropped;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto at = places_.find(weights.get());
    if (at != places_.end()) Remove(at->second, &dropped);
  }

 private:
  using Order = std::list<LazyExperts::Packed>;  // the last used first

  void MoveToFront(const LazyExperts::Packed& weights) {
    if (const auto at = places_.find(weights.get()); at != places_.end()) {
      order_.splice(order_.begin(), order_, at->second);
      return;
    }
    Order one = {weights};
    places_.emplace(weights.get(), one.begin());
    order_.splice(order_.begin(), one);
    bytes_ += weights->bytes();
  }
  void Remove(Order::iterator at, Order* dropped) {
    bytes_ -= (*at)->bytes();
    places_.erase(at->get());
    dropped->splice(dropped->begin(), order_, at);
  }

  std::mutex mutex_;
  Order order_;
  std::unordered_map<const PackedWeights*, Order::iterator> places_;
  size_t bytes_ = 0;
};

}  // namespace

std::optional<size_t> LazyExperts::LimitOfEnvironment() {
  const char* text = std::getenv(kVariable);
  if (text == nullptr || *text == '\0') return std::nullopt;
  const std::string digits = text;
  if (digits.find_first_not_of("0123456789") != std::string::npos || digits.size() > 18) {
    throw std::invalid_argument(std::string(kVariable) + ": got '" + digits + "', expected a number of bytes");
  }
  return std::stoull(digits);
}

LazyExperts::LazyExperts(const std::array<Product, kProducts>& products, const WeightLayout& layout, int64_t experts,
                         size_t limit)
    : products_(products), layout_(layout), limit_(limit) {
  for (Product& product : products_) product.spec.N /= experts;
  for (auto& slots : slots_) slots.resize(static_cast<size_t>(experts));
}

LazyExperts::~LazyExperts() {
  for (const auto& slots : slots_) {
    for (const auto& slot : slots) {
      if (const Packed weights = slot.lock()) Recent::Get().Forget(weights);
    }
  }
}

LazyExperts::Held LazyExperts::Hold(const std::vector<int64_t>& experts, const ParallelFor& parallel) {
  struct Missing {
    size_t product, index;
  };
  Held held;
  std::vector<Missing> missing;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t product = 0; product < kProducts; ++product) {
      for (size_t i = 0; i < experts.size(); ++i) {
        held[product].push_back(slots_[product][static_cast<size_t>(experts[i])].lock());
        if (!held[product].back()) missing.push_back({product, i});
      }
    }
  }
  if (!missing.empty()) {
    parallel(static_cast<int64_t>(missing.size()), [&](int64_t task) {
      const Missing& one = missing[static_cast<size_t>(task)];
      held[one.product][one.index] = Pack(one.product, experts[one.index]);
    });
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Missing& one : missing) {
      slots_[one.product][static_cast<size_t>(experts[one.index])] = held[one.product][one.index];
    }
  }
  Recent::Get().Keep(held, limit_);
  return held;
}

LazyExperts::Packed LazyExperts::Pack(size_t product, int64_t expert) const {
  const auto& [spec, first] = products_[product];
  const int64_t blocks = spec.N * BlocksOf(spec.K), block_bytes = BlockBytes(spec.weight_format);
  const Weights weights = {first.codes + expert * blocks * block_bytes, first.scales + expert * blocks};
  // A thread of a pool packs alone: it may be waited for by threads of another session's pool.
  Packed packed = SharedPackedWeights(spec, layout_, weights, SerialFor);
  DropFilePages(weights.codes, static_cast<size_t>(blocks * block_bytes));
  DropFilePages(weights.scales, static_cast<size_t>(blocks));
  return packed;
}

}  // namespace mxort
