// Operators that compute every element of their output from the elements at its place in their inputs: the table, and
// what a launch computes of one or of several (fusion.h).
#ifndef MXORT_PROVIDER_OPS_POINTWISE_H_
#define MXORT_PROVIDER_OPS_POINTWISE_H_

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "device/pointwise.h"
#include "provider/op_table.h"

namespace mxort::provider {

struct PointwiseRow {
  const char* domain;
  const char* type;
  int since;
  hip::Function function;
  std::vector<std::pair<const char*, Types>> constraints;
  // a and b of the function (args_pointwise.h) from the node's attributes; null: it has none.
  std::array<float, 2> (*parameters)(const Attributes& node) = nullptr;
  bool variadic = false;  // any number of inputs, two at a time; else at most three
};

// Null: the operator is none of them.
const PointwiseRow* PointwiseNamed(const std::string& domain, const std::string& type);

// Appends what a node computes. `from`: its inputs, as steps name them (device/pointwise.h); `type`: of its output.
void AppendSteps(const PointwiseRow& row, const Attributes& attributes, const std::vector<int>& from, hip::Type type,
                 std::vector<device::PointwiseStep>* steps);

// Those inputs of a call, and the shape that they broadcast to. Throws std::invalid_argument where they do not.
Shape Operands(const NodeCall& call, const std::vector<size_t>& inputs, std::vector<device::Operand>* operands);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_OPS_POINTWISE_H_
