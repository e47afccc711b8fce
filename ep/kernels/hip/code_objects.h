// The code objects inside this library. Empty where it was built without a compiler for GPU kernels.
#ifndef MXORT_KERNELS_HIP_CODE_OBJECTS_H_
#define MXORT_KERNELS_HIP_CODE_OBJECTS_H_

#include <cstddef>

namespace mxort::hip {

struct CodeObject {
  const char* name;  // of its source: gemm_mx, gemm_bf16, prepare (select.h)
  const char* arch;
  const void* data;
  size_t bytes;
};
const CodeObject* CodeObjects(size_t* count);

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_CODE_OBJECTS_H_
