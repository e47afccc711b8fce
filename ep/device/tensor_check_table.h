// The table of tensor_check.cc, and the functions behind it, one a file.
#ifndef MXORT_DEVICE_TENSOR_CHECK_TABLE_H_
#define MXORT_DEVICE_TENSOR_CHECK_TABLE_H_

#include "device/check_run.h"
#include "device/status.h"
#include "device/tensor_check.h"

namespace mxort::device {

// Launches a kernel on a small problem, compares, and sets passed, error and bound of `check`. `which` tells the
// kernels of a function apart.
using TensorCheckFunction = Status (*)(CheckRun& run, int which, KernelCheck* check);

struct TensorCheckRow {
  unsigned families;
  const char* kernel;  // * is the type
  TensorCheckFunction function;
  int which;
};

// product_check.cc
Status CheckProduct(CheckRun& run, int kernel, KernelCheck* check);  // Product::Kernels; kKernels: product_reduce
Status CheckPatches(CheckRun& run, int bytes, KernelCheck* check);   // of an element
// attention_check.cc
Status CheckAttention(CheckRun& run, int head_size, KernelCheck* check);  // few rows
Status CheckPrefill(CheckRun& run, int head_size, KernelCheck* check);
Status CheckQuantisedAttention(CheckRun& run, int bits_and_head_size, KernelCheck* check);  // bits * 1000 + size
Status CheckMerge(CheckRun& run, int, KernelCheck* check);
Status CheckAppend(CheckRun& run, int cache_format, KernelCheck* check);  // hip::CacheFormat
Status CheckCacheCopy(CheckRun& run, int, KernelCheck* check);
Status CheckWindow(CheckRun& run, int, KernelCheck* check);
// rows_check.cc; lengths of rows
Status CheckSoftmax(CheckRun& run, int n, KernelCheck* check);
Status CheckNorm(CheckRun& run, int n, KernelCheck* check);
Status CheckReduction(CheckRun& run, int n, KernelCheck* check);
Status CheckReduceWhole(CheckRun& run, int n, KernelCheck* check);
Status CheckTop(CheckRun& run, int n, KernelCheck* check);
// strided_check.cc
Status CheckPointwise(CheckRun& run, int whole, KernelCheck* check);
Status CheckCopy(CheckRun& run, int bytes, KernelCheck* check);  // that a lane moves at once
Status CheckGather(CheckRun& run, int bytes, KernelCheck* check);
Status CheckGatherMx(CheckRun& run, int format, KernelCheck* check);  // WeightFormat
Status CheckActivate(CheckRun& run, int, KernelCheck* check);

}  // namespace mxort::device

#endif  // MXORT_DEVICE_TENSOR_CHECK_TABLE_H_
