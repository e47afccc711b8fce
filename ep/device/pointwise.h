// Functions of the elements at one place of several tensors, with broadcasting, step after step in one launch
// (kernels/hip/pointwise.hip).
#ifndef MXORT_DEVICE_POINTWISE_H_
#define MXORT_DEVICE_POINTWISE_H_

#include <array>
#include <memory>
#include <vector>

#include "device/kernel.h"
#include "device/strided.h"
#include "kernels/hip/args_pointwise.h"

namespace mxort::device {

// Where a step has an operand from: an input, by its number; the result of an earlier step, by ResultOf; nowhere.
inline constexpr int kAbsent = -1;
constexpr int ResultOf(size_t step) { return -2 - static_cast<int>(step); }

struct PointwiseStep {
  hip::Function function;
  std::array<int, 3> from = {kAbsent, kAbsent, kAbsent};
  hip::Type type;  // of the result, which is rounded to it
  float a = 0, b = 0;
};

class Pointwise {
 public:
  // What a launch gives is the last step's result; `inputs` are the types of what it reads. kUnsupported where these
  // are more inputs, steps or results at a time than a launch has room for.
  static Status Load(const std::shared_ptr<Device>& device, const std::vector<hip::Type>& inputs,
                     const std::vector<PointwiseStep>& steps, Pointwise* pointwise);
  // Whether Load takes them.
  static bool Fits(size_t inputs, const std::vector<PointwiseStep>& steps);

  // out[dims] = the steps of the inputs, each broadcast to `dims`. `out` may be an input of that shape.
  Status Launch(void* stream, const std::vector<Operand>& in, void* out, const Dims& dims) const;

 private:
  Kernel kernel_;
  hip::PointwiseArgs args_{};
  std::vector<hip::Type> inputs_;
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_POINTWISE_H_
