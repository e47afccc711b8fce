#include "kernels/hip/code_objects.h"

// code_objects.inc is written by cmake/HipKernels.cmake: one MXORT_CODE_OBJECT(name, arch) for each embedded file.
#define MXORT_CODE_OBJECT(name, arch) \
  extern "C" const char mxort_co_##name##_##arch[], mxort_co_##name##_##arch##_end[];
#include "code_objects.inc"
#undef MXORT_CODE_OBJECT

namespace mxort::hip {

const CodeObject* CodeObjects(size_t* count) {
  static const CodeObject kObjects[] = {
#define MXORT_CODE_OBJECT(name, arch)      \
  {#name, #arch, mxort_co_##name##_##arch, \
   static_cast<size_t>(mxort_co_##name##_##arch##_end - mxort_co_##name##_##arch)},
#include "code_objects.inc"
#undef MXORT_CODE_OBJECT
      {nullptr, nullptr, nullptr, 0}};
  *count = sizeof(kObjects) / sizeof(kObjects[0]) - 1;
  return kObjects;
}

}  // namespace mxort::hip
