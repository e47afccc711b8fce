// Mixture of experts on the CPU: what MoEMXFP4 computes (docs/format.md). Knows no ONNX Runtime.
#ifndef MXORT_KERNELS_EXPERTS_H_
#define MXORT_KERNELS_EXPERTS_H_

#include <cstdint>
#include <vector>

#include "kernels/lazy_experts.h"
#include "kernels/matmul.h"

namespace mxort {

// How the gates and what they multiply lie in the rows of an expert's first weight: gate_i and up_i behind each other,
// or all gates first. The numbers are those of the attribute `swiglu_fusion`.
enum class Gating { kNone = 0, kInterleaved = 1, kHalves = 2 };
inline constexpr int64_t kGatings = 3;

struct ExpertsSpec {
  int64_t experts = 0;
  int64_t chosen = 0;  // of each row
  int64_t hidden = 0;  // columns of X and Y
  int64_t inner = 0;   // columns between the two products
  bool normalize = false;
  Gating gating = Gating::kNone;
  Activation activation = Activation::kNone;
  GateShape shape;
  // Products with the weights of all experts behind each other: N is their sum. Both take the same kernels.
  MatMulSpec first, second;
};

struct ExpertsCall {
  const ExpertsSpec* spec;
  const Kernels* kernels;
  Activate activate;
  MatMulOperand first, second;  // of all experts; `packed` null: `lazy` has them
  LazyExperts* lazy;            // or null
  DataType type;                // of x, router and y
  int64_t rows;
  const void* x;       // [rows, hidden]
  const void* router;  // [rows, experts]: logits
  void* y;             // [rows, hidden]
};
void Experts(const ExpertsCall& call, const ParallelFor& parallel);

// Which rows each expert gets, in the order of the experts and then of the rows.
struct Routing {
  struct Share {
    int64_t row;
    float weight;
  };
  std::vector<Share> shares;
  std::vector<int64_t> begin;     // [experts + 1]: of each expert in `shares`
  std::vector<int64_t> unrouted;  // rows with NaN logits

  int64_t experts() const { return static_cast<int64_t>(begin.size()) - 1; }
  std::vector<int64_t> Used() const;  // experts that have rows
};
// Rows [rows.begin, rows.end) of `router`: the `chosen` largest logits, of equal ones the first.
Routing Route(const ExpertsSpec& spec, DataType type, const void* router, Range rows);

}  // namespace mxort

#endif  // MXORT_KERNELS_EXPERTS_H_
