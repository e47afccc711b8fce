#include "device/code_object.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "kernels/hip/code_objects.h"

namespace mxort::device {

Status FindCodeObject(const std::string& object, const std::string& arch, CodeObjectBytes* bytes) {
  if (const char* folder = std::getenv("MXORT_CODE_OBJECTS"); folder != nullptr && *folder != '\0') {
    std::ifstream file(std::string(folder) + "/" + object + "." + arch + ".co", std::ios::binary);
    if (file) {
      bytes->assign(std::istreambuf_iterator<char>(file), {});
      return {};
    }
  }
  size_t count = 0;
  const hip::CodeObject* embedded = hip::CodeObjects(&count);
  for (size_t i = 0; i < count; ++i) {
    if (object != embedded[i].name || arch != embedded[i].arch) continue;
    const auto* data = static_cast<const char*>(embedded[i].data);
    bytes->assign(data, data + embedded[i].bytes);
    return {};
  }
  return {ErrorCode::kUnsupported, "no code object " + object + " for " + arch + " in this build"};
}

std::string WhyNoKernels(const std::string& arch) {
  std::string known;
  size_t count = 0;
  const hip::CodeObject* embedded = hip::CodeObjects(&count);
  for (size_t i = 0; i < count; ++i) {
    if (std::strcmp(embedded[i].name, "prepare") != 0) continue;
    if (arch == embedded[i].arch) return "";
    known += (known.empty() ? "" : ", ") + std::string(embedded[i].arch);
  }
  CodeObjectBytes bytes;
  if (FindCodeObject("prepare", arch, &bytes).ok()) return "";  // in MXORT_CODE_OBJECTS
  if (known.empty()) return "this build of mxort has no GPU kernels";
  return "mxort has no kernels for " + (arch.empty() ? "this architecture" : arch) + ", only for " + known;
}

}  // namespace mxort::device
