#include "provider/node_view.h"

#include <cstring>
#include <stdexcept>

namespace mxort::provider {

NodeView::NodeView(const Runtime& runtime, const OrtNode* node) : runtime_(runtime), node_(node) {
  const char *domain = nullptr, *type = nullptr;
  runtime.Check(runtime.api->Node_GetDomain(node, &domain));
  runtime.Check(runtime.api->Node_GetOperatorType(node, &type));
  domain_ = domain;
  if (domain_ == "ai.onnx") domain_.clear();
  type_ = type;
  size_t count = 0;
  runtime.Check(runtime.api->Node_GetNumInputs(node, &count));
  inputs_.resize(count);
  runtime.Check(runtime.api->Node_GetInputs(node, inputs_.data(), count));
  runtime.Check(runtime.api->Node_GetNumOutputs(node, &count));
  outputs_.resize(count);
  runtime.Check(runtime.api->Node_GetOutputs(node, outputs_.data(), count));
}

const OrtOpAttr* NodeView::Find(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  OrtStatus* status = runtime_.api->Node_GetAttributeByName(node_, name, &attribute);
  if (!status) return attribute;
  const bool absent = runtime_.api->GetErrorCode(status) == ORT_NOT_FOUND;
  if (!absent) runtime_.Check(status);
  runtime_.api->ReleaseStatus(status);
  return nullptr;
}

bool NodeView::Int(const char* name, int64_t* value) const {
  const OrtOpAttr* attribute = Find(name);
  size_t size = 0;
  if (attribute) runtime_.Check(runtime_.api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, value, sizeof *value, &size));
  return attribute;
}

bool NodeView::Float(const char* name, float* value) const {
  const OrtOpAttr* attribute = Find(name);
  size_t size = 0;
  if (attribute) runtime_.Check(runtime_.api->ReadOpAttr(attribute, ORT_OP_ATTR_FLOAT, value, sizeof *value, &size));
  return attribute;
}

bool NodeView::String(const char* name, std::string* value) const {
  const OrtOpAttr* attribute = Find(name);
  if (!attribute) return false;
  std::string text(64, '\0');  // longer words are none of any operator here: reading fails, and the node is left
  size_t size = 0;
  runtime_.Check(runtime_.api->ReadOpAttr(attribute, ORT_OP_ATTR_STRING, text.data(), text.size(), &size));
  *value = text.c_str();
  return true;
}

bool NodeView::Ints(const char* name, std::vector<int64_t>* values) const {
  const OrtOpAttr* attribute = Find(name);
  if (!attribute) return false;
  values->assign(64, 0);  // axes, pads: no operator here has more
  size_t bytes = 0;
  runtime_.Check(
      runtime_.api->ReadOpAttr(attribute, ORT_OP_ATTR_INTS, values->data(), values->size() * sizeof(int64_t), &bytes));
  values->resize(bytes / sizeof(int64_t));
  return true;
}

int64_t NodeView::IntOr(const char* name, int64_t otherwise) const {
  int64_t value = 0;
  return Int(name, &value) ? value : otherwise;
}

std::string NodeView::Name() const {
  const char* name = "";
  runtime_.Check(runtime_.api->Node_GetName(node_, &name));
  return name;
}

int NodeView::SinceVersion() const {
  int version = 0;
  runtime_.Check(runtime_.api->Node_GetSinceVersion(node_, &version));
  return version;
}

bool NodeView::Free() const {
  const char* provider = nullptr;
  runtime_.Check(runtime_.api->Node_GetEpName(node_, &provider));
  return !provider || !*provider || std::strcmp(provider, runtime_.name) == 0;
}

const OrtValueInfo* NodeView::Input(size_t index) const {
  if (!Has(index)) throw std::invalid_argument("input " + std::to_string(index) + " is missing");
  return inputs_[index];
}

const OrtValueInfo* NodeView::Output(size_t index) const {
  if (!HasOutput(index)) throw std::invalid_argument("output " + std::to_string(index) + " is missing");
  return outputs_[index];
}

const OrtTensorTypeAndShapeInfo* NodeView::TensorInfo(const OrtValueInfo* value) const {
  const OrtTypeInfo* type = nullptr;  // owned by the value
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  runtime_.Check(runtime_.api->GetValueInfoTypeInfo(value, &type));
  if (type) runtime_.Check(runtime_.api->CastTypeInfoToTensorInfo(type, &tensor));
  if (!tensor) throw std::invalid_argument("an input or output is no tensor");
  return tensor;
}

std::string NodeView::InputName(size_t index) const {
  const char* name = "";
  runtime_.Check(runtime_.api->GetValueInfoName(Input(index), &name));
  return name;
}

std::string NodeView::OutputName(size_t index) const {
  const char* name = "";
  if (HasOutput(index)) runtime_.Check(runtime_.api->GetValueInfoName(outputs_[index], &name));
  return name;
}

ONNXTensorElementDataType NodeView::InputType(size_t index) const {
  ONNXTensorElementDataType type;
  runtime_.Check(runtime_.api->GetTensorElementType(TensorInfo(Input(index)), &type));
  return type;
}

ONNXTensorElementDataType NodeView::OutputType(size_t index) const {
  ONNXTensorElementDataType type;
  runtime_.Check(runtime_.api->GetTensorElementType(TensorInfo(Output(index)), &type));
  return type;
}

Shape NodeView::ShapeOf(const OrtValueInfo* value) const {
  const OrtTensorTypeAndShapeInfo* info = TensorInfo(value);
  size_t rank = 0;
  runtime_.Check(runtime_.api->GetDimensionsCount(info, &rank));
  Shape shape(rank);
  runtime_.Check(runtime_.api->GetDimensions(info, shape.data(), rank));
  return shape;
}

Shape NodeView::InputShape(size_t index) const { return ShapeOf(Input(index)); }
Shape NodeView::OutputShape(size_t index) const { return ShapeOf(Output(index)); }

size_t NodeView::Readers(size_t output) const {
  size_t count = 0;
  runtime_.Check(runtime_.api->ValueInfo_GetValueNumConsumers(Output(output), &count));
  return count;
}

bool NodeView::IsGraphOutput(size_t output) const {
  bool is_output = false;
  runtime_.Check(runtime_.api->ValueInfo_IsGraphOutput(Output(output), &is_output));
  return is_output;
}

bool NodeView::IsConstant(size_t index) const {
  bool is_constant = false;
  runtime_.Check(runtime_.api->ValueInfo_IsConstantInitializer(Input(index), &is_constant));
  return is_constant;
}

const OrtValue* NodeView::Constant(size_t index) const {
  bool outer = false;
  runtime_.Check(runtime_.api->ValueInfo_IsFromOuterScope(Input(index), &outer));
  if (outer || !IsConstant(index)) return nullptr;
  const OrtValue* value = nullptr;
  runtime_.Check(runtime_.api->ValueInfo_GetInitializerValue(Input(index), &value));
  return value;
}

}  // namespace mxort::provider
