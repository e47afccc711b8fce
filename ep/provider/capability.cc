#include "provider/capability.h"

#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "ops/matmul_inputs.h"
#include "ops/matmul_spec.h"

namespace mxort::provider {
namespace {

const OrtOpAttr* FindAttribute(const Runtime& runtime, const OrtNode* node, const char* name) {
  const OrtOpAttr* attribute = nullptr;
  OrtStatus* status = runtime.api->Node_GetAttributeByName(node, name, &attribute);
  if (!status) return attribute;
  const bool absent = runtime.api->GetErrorCode(status) == ORT_NOT_FOUND;
  if (!absent) runtime.Check(status);
  runtime.api->ReleaseStatus(status);
  return nullptr;
}

class NodeAttributes : public Attributes {
 public:
  NodeAttributes(const Runtime& runtime, const OrtNode* node) : runtime_(runtime), node_(node) {}

  bool Int(const char* name, int64_t* value) const override {
    const OrtOpAttr* attribute = FindAttribute(runtime_, node_, name);
    size_t size = 0;
    if (attribute) runtime_.Check(runtime_.api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, value, sizeof *value, &size));
    return attribute;
  }

  bool String(const char* name, std::string* value) const override {
    const OrtOpAttr* attribute = FindAttribute(runtime_, node_, name);
    if (!attribute) return false;
    std::string text(32, '\0');  // longer names are none of ours: reading fails, and the node is left
    size_t size = 0;
    runtime_.Check(runtime_.api->ReadOpAttr(attribute, ORT_OP_ATTR_STRING, text.data(), text.size(), &size));
    *value = text.c_str();
    return true;
  }

 private:
  const Runtime& runtime_;
  const OrtNode* node_;
};

const OrtTensorTypeAndShapeInfo* TensorInfo(const Runtime& runtime, const OrtValueInfo* value) {
  const OrtTypeInfo* type = nullptr;  // owned by the value
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  runtime.Check(runtime.api->GetValueInfoTypeInfo(value, &type));
  if (type) runtime.Check(runtime.api->CastTypeInfoToTensorInfo(type, &tensor));
  if (!tensor) throw std::invalid_argument("an input is no tensor");
  return tensor;
}

DataType ElementTypeOf(const Runtime& runtime, Input input, const OrtValueInfo* value) {
  ONNXTensorElementDataType type;
  runtime.Check(runtime.api->GetTensorElementType(TensorInfo(runtime, value), &type));
  return DataTypeOf(input, type);
}

Shape ShapeOf(const Runtime& runtime, const OrtValueInfo* value) {
  const OrtTensorTypeAndShapeInfo* info = TensorInfo(runtime, value);
  size_t rank = 0;
  runtime.Check(runtime.api->GetDimensionsCount(info, &rank));
  Shape shape(rank);
  runtime.Check(runtime.api->GetDimensions(info, shape.data(), rank));
  return shape;
}

// Why a MatMulMXFP4 is left to the CPU; empty: it is not. Throws where the node is not valid.
std::string WhyLeft(const Runtime& runtime, const OrtNode* node, const WhyUnsupported& why_unsupported) {
  size_t count = 0;
  runtime.Check(runtime.api->Node_GetNumInputs(node, &count));
  if (count != kInputs) return "it has " + std::to_string(count) + " inputs";
  std::array<const OrtValueInfo*, kInputs> inputs{};
  runtime.Check(runtime.api->Node_GetInputs(node, inputs.data(), inputs.size()));
  const MatMulSpec spec = CheckAttributes(ReadAttributes(NodeAttributes(runtime, node), Mxfp4Operator()));
  for (size_t i = kB; i < kInputs; ++i) {
    if (!inputs[i]) return std::string(kInputNames[i]) + " is missing";
    bool is_constant = false;
    runtime.Check(runtime.api->ValueInfo_IsConstantInitializer(inputs[i], &is_constant));
    if (!is_constant) return std::string(kInputNames[i]) + " is no constant";
    CheckInput(spec, static_cast<Input>(i), ShapeOf(runtime, inputs[i]));
    if (i >= kColumnScale) ElementTypeOf(runtime, static_cast<Input>(i), inputs[i]);
  }
  return why_unsupported(spec, ElementTypeOf(runtime, kA, inputs[kA]));
}

bool IsMatMul(const Runtime& runtime, const OrtNode* node) {
  const char *domain = nullptr, *type = nullptr, *provider = nullptr;
  runtime.Check(runtime.api->Node_GetDomain(node, &domain));
  runtime.Check(runtime.api->Node_GetOperatorType(node, &type));
  runtime.Check(runtime.api->Node_GetEpName(node, &provider));
  const bool free = !provider || !*provider || std::strcmp(provider, kEpName) == 0;
  return free && std::strcmp(domain, kDomain) == 0 && std::strcmp(type, kMatMulName) == 0;
}

}  // namespace

void ClaimNodes(const Runtime& runtime, const OrtGraph* graph, OrtEpGraphSupportInfo* support, const Logger& logger,
                const WhyUnsupported& why_unsupported) {
  size_t count = 0;
  runtime.Check(runtime.api->Graph_GetNumNodes(graph, &count));
  std::vector<const OrtNode*> nodes(count);
  runtime.Check(runtime.api->Graph_GetNodes(graph, nodes.data(), count));
  for (const OrtNode* node : nodes) {
    if (!IsMatMul(runtime, node)) continue;
    std::string why;
    try {
      why = WhyLeft(runtime, node, why_unsupported);
    } catch (const std::exception& error) {
      why = error.what();
    }
    if (why.empty()) {
      runtime.Check(runtime.ep->EpGraphSupportInfo_AddSingleNode(support, node));
      continue;
    }
    const char* name = "";
    runtime.Check(runtime.api->Node_GetName(node, &name));
    logger.Log(ORT_LOGGING_LEVEL_VERBOSE, std::string(kMatMulName) + " '" + name + "' is left to the CPU: " + why);
  }
}

}  // namespace mxort::provider
