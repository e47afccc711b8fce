// Kernels over rows (kernels/hip/rows.hip): softmax, normalisation, reductions, the best of a row.
#ifndef MXORT_DEVICE_ROWS_H_
#define MXORT_DEVICE_ROWS_H_

#include <array>
#include <cstdint>
#include <memory>

#include "device/kernel.h"
#include "kernels/hip/args_rows.h"

namespace mxort::device {

// [outer, n, inner]: outer * inner rows of n. kUnsupported where an axis has more than 2^31 elements.
Status MakeRowShape(int64_t outer, int64_t n, int64_t inner, hip::RowShape* shape);

// The arguments are filled by the caller; rows are spread over waves or workgroups by their length. Rows without
// elements launch nothing.
class RowKernel {
 public:
  // `name`: softmax, norm, reduce_rows.
  static Status Load(const std::shared_ptr<Device>& device, const char* name, RowKernel* kernel);
  template <class Args>
  Status Launch(void* stream, const Args& args) const {
    return Launch(stream, args.shape, &args);
  }

 private:
  Status Launch(void* stream, const hip::RowShape& shape, const void* args) const;
  Kernel wave_, group_;
};

Status LaunchReduceWhole(const Kernel& kernel, void* stream, const hip::ReduceRowsArgs& args);  // reduce_whole
Status LaunchTop(const Kernel& kernel, void* stream, const hip::TopArgs& args);                 // top

}  // namespace mxort::device

#endif  // MXORT_DEVICE_ROWS_H_
