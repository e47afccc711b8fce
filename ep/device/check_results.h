// How a self-check judges what a kernel computed, and what the checks of this process have found.
#ifndef MXORT_DEVICE_CHECK_RESULTS_H_
#define MXORT_DEVICE_CHECK_RESULTS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "device/device.h"
#include "device/self_check.h"
#include "device/status.h"
#include "kernels/kernel.h"

namespace mxort::device {

// Bound of the relative RMS error where A is quantised, or taken as it is, and only sums differ. Random signs leave
// about 1e-7; matrix units that cut sums off instead of rounding them lose up to 2^-23 in each of K / 32 additions,
// 1e-5 together. The least mistake in an operand, one step of an E4M3 element in every row, is 2e-3.
inline constexpr double kSumsBound = 3e-5;
// Bound of the relative RMS error of products with this spec, before Y is rounded to its type.
double CheckBound(const MatMulSpec& spec);

// The errors of some elements of Y.
class Comparison {
 public:
  explicit Comparison(DataType type) : type_(type) {}
  void Add(float got, double right);
  // Ands the verdict to check->passed, and raises check->error; check->bound is that of before rounding.
  void Judge(KernelCheck* check) const;

 private:
  const DataType type_;
  double error_ = 0, norm_ = 0, worst_ = 0;
  int64_t count_ = 0;
};
double RoundingOf(DataType type);
const char* TypeName(DataType type);  // as kernels are named

// Numbers of a type in memory, and back.
std::vector<uint8_t> InType(DataType type, const std::vector<float>& x);
std::vector<float> FromType(DataType type, const std::vector<uint8_t>& bytes);

// `result` names the kernel, `variant` what else tells checks of it apart. Runs the check unless that was done before
// in this process, or `check` is false; a failure is reported once. An error of `run` is of the device and not
// remembered.
Status CheckOnce(const std::shared_ptr<Device>& device, KernelCheck result, int variant, bool check,
                 const std::function<Status(KernelCheck*)>& run, bool* passed);

}  // namespace mxort::device

#endif  // MXORT_DEVICE_CHECK_RESULTS_H_
