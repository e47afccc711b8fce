// Kernels against the CPU's double-precision reference, on a small fixed problem on the device itself.
#ifndef MXORT_DEVICE_SELF_CHECK_H_
#define MXORT_DEVICE_SELF_CHECK_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"
#include "device/status.h"
#include "kernels/experts.h"
#include "kernels/kernel.h"

namespace mxort::device {

// Result for one kernel with one preparation of A and one type.
struct KernelCheck {
  int device = 0;           // ordinal
  std::string kernel;       // row of hip::GemmRows or hip::ExpertsRows
  std::string preparation;  // "prepare_e2m3x2"
  int terms = 1;
  DataType type = DataType::kFloat;
  bool passed = false;
  double error = 0, bound = 0;  // relative RMS
};

// Loads and checks every kernel that this spec and type may use on the device, unless it was checked before in this
// process. A kernel that disagrees is reported once on stderr ("mxort: warning: ...") and its bit set in `disabled`
// (hip::Device::disabled); that is no error. `check` false: nothing is run, `disabled` tells what is known already.
// An error is of the device, and nothing is remembered then.
Status CheckKernels(const std::shared_ptr<Device>& device, const MatMulSpec& spec, DataType type, bool check,
                    uint64_t* disabled);

// The same of a mixture of experts; bits of rows of hip::ExpertsRows.
Status CheckExpertsKernels(const std::shared_ptr<Device>& device, const ExpertsSpec& spec, DataType type, bool check,
                           uint64_t* disabled);

// All results of this process so far, in the order in which they came.
std::vector<KernelCheck> KernelChecks();

}  // namespace mxort::device

#endif  // MXORT_DEVICE_SELF_CHECK_H_
