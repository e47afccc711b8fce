#include "ops/kernel_info.h"

#include <cstdlib>
#include <memory>

#include "ops/ort_status.h"

namespace mxort {

const OrtApi* NegotiateApi(const OrtApiBase* base, uint32_t* version) {
  const std::string text = base->GetVersionString();  // "1.<minor>.<patch>"
  const size_t dot = text.find('.');
  const int minor = dot == std::string::npos ? 0 : std::atoi(text.c_str() + dot + 1);
  *version = static_cast<uint32_t>(minor < ORT_API_VERSION ? minor : ORT_API_VERSION);
  return base->GetApi(*version);
}

namespace {

// What reading an attribute returned. An absent optional one leaves its default alone; anything else is an error. ONNX
// Runtime reports absence and a wrong type with the same code, hence the look at the text (the same from 1.22 to 1.31;
// a test pins it on each of them).
void CheckAttribute(const OrtApi& api, const char* name, bool optional, OrtStatus* status) {
  if (!status) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  const bool absent = message.find("No attribute with") != std::string::npos;
  if (absent && optional) return;
  throw std::invalid_argument(std::string("attribute ") + name + (absent ? " is missing" : ": " + message));
}

}  // namespace

std::string NodeName(const OrtApi& api, const OrtKernelInfo* info) {
  size_t size = 0;
  if (OrtStatus* status = api.KernelInfo_GetNodeName(info, nullptr, &size)) api.ReleaseStatus(status);
  std::string name(size, '\0');
  if (OrtStatus* status = api.KernelInfo_GetNodeName(info, name.data(), &size)) {
    api.ReleaseStatus(status);
    return {};
  }
  name.resize(size ? size - 1 : 0);
  return name;
}

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

Tensor ReadTensor(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api, api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(info, &rank));
  Tensor tensor{Shape(rank), nullptr};
  Check(api, api.GetDimensions(info, tensor.shape.data(), rank));
  Check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

const OrtValue* InputValue(const OrtApi& api, const OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  Check(api, api.KernelContext_GetInput(context, index, &value));
  if (!value) throw std::invalid_argument("input " + std::to_string(index) + " is missing");
  return value;
}

}  // namespace mxort
