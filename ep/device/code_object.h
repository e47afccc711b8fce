// The code objects that a device loads: those embedded in this library, or files in their place.
#ifndef MXORT_DEVICE_CODE_OBJECT_H_
#define MXORT_DEVICE_CODE_OBJECT_H_

#include <string>
#include <vector>

#include "device/status.h"

namespace mxort::device {

// An ELF image in memory of its own, also where it is embedded: of an image that is mapped from a file HIP opens the
// file by its name, which may be another one's by then, or gone (a package upgraded under a running process).
using CodeObjectBytes = std::vector<char>;

// `object` (gemm_mx, gemm_bf16, prepare) for `arch`: the file <object>.<arch>.co in the folder MXORT_CODE_OBJECTS,
// where there is one, else what was embedded. kUnsupported: neither.
Status FindCodeObject(const std::string& object, const std::string& arch, CodeObjectBytes* bytes);

// One line, or empty where there are kernels for `arch`.
std::string WhyNoKernels(const std::string& arch);

}  // namespace mxort::device

#endif  // MXORT_DEVICE_CODE_OBJECT_H_
