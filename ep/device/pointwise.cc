#include "device/pointwise.h"

#include <algorithm>
#include <string>

#include "device/views.h"

namespace mxort::device {
namespace {

constexpr unsigned kMostGroups = 4096;  // 16 of each compute unit; more elements are taken in turns

bool IsWhole(hip::Type type) { return type >= hip::Type::kInt64; }

// The register of each step's result, free again behind the last step that reads it; empty: there are too few.
std::vector<int> AssignRegisters(const std::vector<PointwiseStep>& steps) {
  std::vector<size_t> last(steps.size(), 0);  // the last reader
  for (size_t s = 0; s < steps.size(); ++s) {
    for (const int from : steps[s].from) {
      for (size_t made = 0; made < s; ++made) {
        if (from == ResultOf(made)) last[made] = s;
      }
    }
  }
  std::vector<int> registers(steps.size(), 0);
  std::array<size_t, hip::kPointwiseRegisters> until{};  // the step that reads what is in it for the last time
  for (size_t s = 0; s + 1 < steps.size(); ++s) {
    const auto free = std::find_if(until.begin(), until.end(), [&](size_t step) { return step <= s; });
    if (free == until.end()) return {};
    *free = last[s];
    registers[s] = static_cast<int>(free - until.begin());
  }
  return registers;
}

}  // namespace

bool Pointwise::Fits(size_t inputs, const std::vector<PointwiseStep>& steps) {
  return inputs <= static_cast<size_t>(hip::kMostPointwiseInputs) && !steps.empty() &&
         steps.size() <= static_cast<size_t>(hip::kMostPointwiseSteps) && !AssignRegisters(steps).empty();
}

Status Pointwise::Load(const std::shared_ptr<Device>& device, const std::vector<hip::Type>& inputs,
                       const std::vector<PointwiseStep>& steps, Pointwise* pointwise) {
  if (!Fits(inputs.size(), steps)) {
    return {ErrorCode::kUnsupported, std::to_string(steps.size()) + " steps of " + std::to_string(inputs.size()) +
                                         " inputs, expected what one launch has room for"};
  }
  const std::vector<int> registers = AssignRegisters(steps);
  pointwise->inputs_ = inputs;
  hip::PointwiseArgs& args = pointwise->args_;
  args.steps = static_cast<int>(steps.size());
  for (size_t s = 0; s < steps.size(); ++s) {
    const PointwiseStep& step = steps[s];
    hip::PointwiseStep& to = args.step[s];
    bool whole = IsWhole(step.type);
    for (size_t i = 0; i < step.from.size(); ++i) {
      const int from = step.from[i];
      to.from[i] = from;
      if (from == kAbsent) continue;
      const auto made = static_cast<size_t>(-2 - from);
      const hip::Type type = from < 0 ? steps[made].type : inputs[static_cast<size_t>(from)];
      if (from < 0) to.from[i] = hip::kPointwiseRegister + registers[made];
      to.types[i] = static_cast<int>(type);
      whole = whole && IsWhole(type);
    }
    to.function = static_cast<int>(step.function);
    to.whole = whole;  // a float on either side makes it a function of floats
    to.to = registers[s];
    to.type = static_cast<int>(step.type);
    to.a = step.a;
    to.b = step.b;
  }
  return Kernel::Load(device, "pointwise", "pointwise", &pointwise->kernel_);
}

Status Pointwise::Launch(void* stream, const std::vector<Operand>& in, void* out, const Dims& dims) const {
  if (Product(dims) == 0) return {};
  std::vector<Dims> strides;
  for (size_t i = 0; i < in.size(); ++i) {
    strides.push_back(BroadcastStrides(in[i].dims, dims));
    if (strides[i].size() != dims.size()) {
      return {ErrorCode::kInvalidArgument, "input " + std::to_string(i) + ": its shape cannot be broadcast"};
    }
  }
  // Parts of the first axis that has any: a launch's indices have 32 bits.
  const auto axis =
      static_cast<size_t>(std::find_if(dims.begin(), dims.end(), [](int64_t size) { return size > 1; }) - dims.begin());
  const int64_t outer = axis < dims.size() ? dims[axis] : 1, inner = Product(dims) / outer;
  if (inner > kMostElements) return {ErrorCode::kUnsupported, "a tensor of more than 2^31 elements in its inner axes"};
  const size_t bytes = BytesOf(static_cast<hip::Type>(args_.step[args_.steps - 1].type));
  const int64_t step = std::max<int64_t>(1, kMostElements / inner);
  for (int64_t begin = 0; begin < outer; begin += step) {
    Dims part = dims;
    if (axis < dims.size()) part[axis] = std::min(step, outer - begin);
    hip::PointwiseArgs args = args_;
    for (size_t i = 0; i < in.size(); ++i) {
      Dims merged = part;
      Operands<1> its = {strides[i]};
      Merge(&merged, &its);
      MXORT_RETURN_IF_ERROR(Fill(merged, its, &args.in[i].shape));
      args.in[i].data = Advanced(in[i].data, axis < dims.size() ? begin * strides[i][axis] : 0, BytesOf(inputs_[i]));
    }
    args.count = static_cast<unsigned long long>(Product(part));
    args.out = Advanced(out, begin * inner, bytes);
    const unsigned long long wanted = (args.count + hip::kPointwiseThreads - 1) / hip::kPointwiseThreads;
    const auto groups = static_cast<unsigned>(std::min<unsigned long long>(wanted, kMostGroups));
    args.threads = groups * hip::kPointwiseThreads;
    MXORT_RETURN_IF_ERROR(kernel_.Launch({groups, 1, 1}, hip::kPointwiseThreads, stream, &args));
  }
  return {};
}

}  // namespace mxort::device
