#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/activation.h"
#include "kernels/experts.h"

namespace mxort {
namespace {

struct Choice {
  int64_t expert, row;
  float weight;
};

// One row's choices; false where a logit is NaN or none is finite.
bool Choose(const ExpertsSpec& spec, const std::vector<float>& logits, int64_t row, std::vector<int64_t>* order,
            std::vector<Choice>* choices) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit) - static_cast<double>(largest));
  if (!std::isfinite(total)) return false;
  std::iota(order->begin(), order->end(), 0);
  const auto before = [&](int64_t a, int64_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::partial_sort(order->begin(), order->begin() + spec.chosen, order->end(), before);
  const auto share = [&](int64_t expert) {
    return std::exp(static_cast<double>(logits[static_cast<size_t>(expert)]) - static_cast<double>(largest));
  };
  if (spec.normalize) {
    total = 0;
    for (int64_t i = 0; i < spec.chosen; ++i) total += share((*order)[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; i < spec.chosen; ++i) {
    const int64_t expert = (*order)[static_cast<size_t>(i)];
    choices->push_back({expert, row, static_cast<float>(share(expert) / total)});
  }
  return true;
}

}  // namespace

std::vector<int64_t> Routing::Used() const {
  std::vector<int64_t> used;
  for (int64_t e = 0; e < experts(); ++e) {
    if (begin[static_cast<size_t>(e)] < begin[static_cast<size_t>(e + 1)]) used.push_back(e);
  }
  return used;
}

Routing Route(const ExpertsSpec& spec, DataType type, const void* router, Range rows) {
  const int64_t experts = spec.experts;
  Routing routing;
  std::vector<float> logits(static_cast<size_t>(experts));
  std::vector<int64_t> order(logits.size());
  std::vector<Choice> choices;
  choices.reserve(static_cast<size_t>((rows.end - rows.begin) * spec.chosen));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const char* from = static_cast<const char*>(router) + static_cast<size_t>(row * experts) * DataTypeBytes(type);
    WidenRow(type, from, experts, experts, logits.data());
    const bool nan = std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); });
    if (nan || !Choose(spec, logits, row, &order, &choices)) routing.unrouted.push_back(row);
  }
  routing.begin.assign(static_cast<size_t>(experts + 1), 0);
  for (const Choice& choice : choices) ++routing.begin[static_cast<size_t>(choice.expert + 1)];
  std::partial_sum(routing.begin.begin(), routing.begin.end(), routing.begin.begin());
  std::vector<int64_t> next(routing.begin.begin(), routing.begin.end() - 1);
  routing.shares.resize(choices.size());
  for (const Choice& choice : choices) {
    routing.shares[static_cast<size_t>(next[static_cast<size_t>(choice.expert)]++)] = {choice.row, choice.weight};
  }
  return routing;
}

}  // namespace mxort
