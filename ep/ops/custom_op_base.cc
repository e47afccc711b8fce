// Compiled against the headers of ONNX Runtime 1.21 too, like custom_op.cc.
#include "ops/custom_op_base.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/parallel.h"
#include "ops/ort_status.h"

namespace mxort {

const OrtApi* NegotiateApi(const OrtApiBase* base, uint32_t* version) {
  const std::string text = base->GetVersionString();  // "1.<minor>.<patch>"
  const size_t dot = text.find('.');
  const int minor = dot == std::string::npos ? 0 : std::atoi(text.c_str() + dot + 1);
  *version = static_cast<uint32_t>(minor < ORT_API_VERSION ? minor : ORT_API_VERSION);
  return base->GetApi(*version);
}

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

// ONNX Runtime reports absence and a wrong type with the same code, hence the look at the text (the same from 1.22 to
// 1.32; a test pins it on each of them).
bool KernelAttributes::Found(const char* name, OrtStatus* status) const {
  if (!status) return true;
  const std::string message = api_.GetErrorMessage(status);
  api_.ReleaseStatus(status);
  if (message.find("No attribute with") != std::string::npos) return false;
  throw std::invalid_argument(std::string("attribute ") + name + ": " + message);
}

bool KernelAttributes::Int(const char* name, int64_t* value) const {
  return Found(name, api_.KernelInfoGetAttribute_int64(info_, name, value));
}

bool KernelAttributes::Float(const char* name, float* value) const {
  return Found(name, api_.KernelInfoGetAttribute_float(info_, name, value));
}

bool KernelAttributes::Ints(const char* name, std::vector<int64_t>* values) const {
  size_t count = 0;
  if (!Found(name, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &count))) return false;
  values->resize(count);
  return count == 0 || Found(name, api_.KernelInfoGetAttributeArray_int64(info_, name, values->data(), &count));
}

bool KernelAttributes::String(const char* name, std::string* value) const {
  size_t size = 0;  // with the terminating zero; stays 0 where the attribute is absent
  if (!Found(name, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size)) || size == 0) return false;
  std::string text(size, '\0');
  Found(name, api_.KernelInfoGetAttribute_string(info_, name, text.data(), &size));
  text.resize(size - 1);
  *value = text;
  return true;
}

Tensor ReadTensor(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api, api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(info, &rank));
  Tensor tensor;
  tensor.shape.resize(rank);
  Check(api, api.GetTensorElementType(info, &tensor.type));
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

void Parallel(const OrtApi& api, OrtKernelContext* context, int64_t tasks, const std::function<void(int64_t)>& body) {
  if (tasks <= 1) return SerialFor(tasks, body);
  struct State {
    const std::function<void(int64_t)>* body;
    FirstError error;
  } state{&body, {}};
  const auto run = [](void* user, size_t task) {
    State& s = *static_cast<State*>(user);
    s.error.Catch([&] { (*s.body)(static_cast<int64_t>(task)); });
  };
  Check(api, api.KernelContext_ParallelFor(context, run, static_cast<size_t>(tasks), 0, &state));
  state.error.Rethrow();
}

Dimensions InputDimensions(const OrtApi& api, const OrtShapeInferContext* context, size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api, api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  Dimensions dimensions;
  Check(api, api.GetTensorElementType(info, &dimensions.type));
  size_t rank = 0;
  Check(api, api.GetDimensionsCount(info, &rank));
  dimensions.sizes.resize(rank);
  Check(api, api.GetDimensions(info, dimensions.sizes.data(), rank));
  std::vector<const char*> names(rank);
  Check(api, api.GetSymbolicDimensions(info, names.data(), rank));
  for (const char* name : names) dimensions.names.push_back(name ? name : "");
  return dimensions;
}

int64_t InferredInt(const OrtApi& api, const OrtShapeInferContext* context, const char* attribute) {
  const OrtOpAttr* attr = nullptr;
  Check(api, api.ShapeInferContext_GetAttribute(context, attribute, &attr));
  int64_t value = 0;
  size_t size = 0;
  Check(api, api.ReadOpAttr(attr, ORT_OP_ATTR_INT, &value, sizeof value, &size));
  return value;
}

// The C++ wrapper marks symbolic dimensions in a way that ONNX Runtime rejects, so this is the C API: value -1 and a
// name. A dimension with neither gets a fresh name, because a bare -1 would be written into the model as a value.
void SetOutputDimensions(const OrtApi& api, OrtShapeInferContext* context, size_t index, Dimensions dimensions) {
  static std::atomic<int64_t> fresh{0};
  const size_t rank = dimensions.sizes.size();
  dimensions.names.resize(rank);
  std::vector<const char*> names(rank);
  for (size_t i = 0; i < rank; ++i) {
    std::string& name = dimensions.names[i];
    if (dimensions.sizes[i] >= 0) {
      name.clear();
    } else {
      dimensions.sizes[i] = -1;
      if (name.empty()) name = "mxort_unk_" + std::to_string(fresh++);
    }
    names[i] = name.c_str();
  }
  OrtTensorTypeAndShapeInfo* y = nullptr;
  Check(api, api.CreateTensorTypeAndShapeInfo(&y));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owner(
      y, api.ReleaseTensorTypeAndShapeInfo);
  Check(api, api.SetTensorElementType(y, dimensions.type));
  Check(api, api.SetDimensions(y, dimensions.sizes.data(), rank));
  Check(api, api.SetSymbolicDimensions(y, names.data(), rank));
  Check(api, api.ShapeInferContext_SetOutputTypeShape(context, index, y));
}

void InferLastDimension(const OrtApi& api, OrtShapeInferContext* context, const char* attribute, bool replace,
                        size_t type_of) {
  Dimensions dimensions = InputDimensions(api, context, 0);
  if (dimensions.sizes.empty()) return;  // also what an unknown rank reads as: leave the output's shape open
  if (!replace) dimensions.sizes.push_back(0);
  dimensions.sizes.back() = InferredInt(api, context, attribute);
  dimensions.type = InputDimensions(api, context, type_of).type;
  SetOutputDimensions(api, context, 0, std::move(dimensions));
}

OrtCustomOp BasicOp(uint32_t version) {
  OrtCustomOp op{};
  op.version = version;  // the negotiated one: a runtime rejects a version newer than its own
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

}  // namespace mxort
