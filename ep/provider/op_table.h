// The operators that the provider computes: a row for each, and what decides whether it takes a node of one.
#ifndef MXORT_PROVIDER_OP_TABLE_H_
#define MXORT_PROVIDER_OP_TABLE_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "provider/node_kernel.h"
#include "provider/node_view.h"

namespace mxort::provider {

// Element types that a type parameter of an operator's schema may have.
using Types = std::vector<ONNXTensorElementDataType>;
const Types& FloatTypes();   // float, float16, bfloat16
const Types& NumberTypes();  // the same, int64, int32, int8, uint8
const Types& AllTypes();     // the same and bool

struct OpRow {
  const char* domain;
  const char* type;
  int since, until;  // versions of the operator's schema, inclusive
  std::vector<std::pair<const char*, Types>> constraints;
  // A node whose kernel is made.
  std::function<std::unique_ptr<NodeKernel>(const NodeInfo& node)> create;
  // Why this node is left to the CPU although its types fit; empty: it is taken. Null: every node is taken. Throws
  // std::exception where the node is not valid, which then is left to the CPU too, whose operator says what is wrong.
  std::string (*why_left)(const Ep& ep, const NodeView& node) = nullptr;
  std::vector<size_t> host_inputs = {};  // read by the CPU: shapes, axes
  std::vector<size_t> host_outputs = {};
  std::vector<std::pair<int, int>> aliases = {};  // input, output: may be the same memory, unchanged
  // What it launches that has to pass its self-check (device::KernelFamily), beside what why_left checks.
  unsigned kernels = 0;

  static bool OnHost(const std::vector<size_t>& which, size_t index);
};

constexpr int kNewest = 30;  // of operators whose meaning has not changed since

template <class Kernel>
std::unique_ptr<NodeKernel> Create(const NodeInfo& node) {
  return std::make_unique<Kernel>(node);
}

// All rows. Rows of one operator have different versions or types.
const std::vector<OpRow>& OpTable();

// One function a file of ep/provider/ops.
using Rows = std::vector<OpRow>;
void AddConv(Rows& rows);
void AddDenseAttention(Rows& rows);
void AddExperts(Rows& rows);
void AddGatherMx(Rows& rows);
void AddGroupQueryAttention(Rows& rows);
void AddMatMulMx(Rows& rows);
void AddMovement(Rows& rows);
void AddNormalisations(Rows& rows);
void AddPointwise(Rows& rows);
void AddProducts(Rows& rows);
void AddRotaryEmbedding(Rows& rows);
void AddRows(Rows& rows);
void AddShapes(Rows& rows);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_OP_TABLE_H_
