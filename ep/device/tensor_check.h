// Self-checks of the kernels that take tensors as they are: products, attention, rows, single elements, copies,
// gathers. A family is what an operator launches; a node of which one kernel is wrong is left to the CPU (provider).
#ifndef MXORT_DEVICE_TENSOR_CHECK_H_
#define MXORT_DEVICE_TENSOR_CHECK_H_

#include <memory>
#include <string>

#include "device/device.h"
#include "device/status.h"
#include "kernels/kernel.h"

namespace mxort::device {

// Bits, several of which make a set.
enum KernelFamily : unsigned {
  kProductKernels = 1,
  kPatchesKernels = 2,
  kAttentionKernels = 4,
  kMxfp8AttentionKernels = 8,
  kMxfp4AttentionKernels = 16,
  kRowKernels = 32,
  kNormKernels = 64,
  kPointwiseKernels = 128,
  kCopyKernels = 256,
  kGatherKernels = 512,
  kGatherMxKernels = 1024,
  kActivateKernels = 2048,
  kAllTensorKernels = 4095,
};

// Loads and checks every kernel of `families` with tensors of a type on the device, unless it was checked before in
// this process. One that disagrees with the CPU is reported once on stderr ("mxort: warning: ..."); `wrong` names the
// first. `check` false: nothing is run, `wrong` tells what is known already. An error is of the device, and not
// remembered.
Status CheckTensorKernels(const std::shared_ptr<Device>& device, unsigned families, DataType type, bool check,
                          std::string* wrong);

}  // namespace mxort::device

#endif  // MXORT_DEVICE_TENSOR_CHECK_H_
