#include "ops/kernel_info.h"

#include "ops/custom_op_base.h"

namespace mxort {

MatMulAttributes ReadAttributes(const OrtApi& api, const OrtKernelInfo* info) {
  MatMulAttributes attributes;
  const auto read_int = [&](const char* name, bool optional, int64_t* value) {
    CheckAttribute(api, name, optional, api.KernelInfoGetAttribute_int64(info, name, value));
  };
  read_int("K", false, &attributes.K);
  read_int("N", false, &attributes.N);
  read_int("rotation", true, &attributes.rotation);
  read_int("accuracy_level", true, &attributes.accuracy_level);
  constexpr const char* kFormat = "activation_format";
  size_t size = 0;  // with the terminating zero; stays 0 where the attribute is absent
  CheckAttribute(api, kFormat, true, api.KernelInfoGetAttribute_string(info, kFormat, nullptr, &size));
  if (size > 0) {
    std::string text(size, '\0');
    CheckAttribute(api, kFormat, true, api.KernelInfoGetAttribute_string(info, kFormat, text.data(), &size));
    text.resize(size - 1);
    attributes.activation_format = text;
  }
  return attributes;
}

}  // namespace mxort
