// A node of a graph while the provider chooses its nodes: attributes, and what is known of inputs before a run.
#ifndef MXORT_PROVIDER_NODE_VIEW_H_
#define MXORT_PROVIDER_NODE_VIEW_H_

#include <string>
#include <vector>

#include "ops/spec.h"
#include "provider/runtime.h"

namespace mxort::provider {

// Belongs to ONNX Runtime's graph, which outlives it. All functions throw OrtError where ONNX Runtime refuses.
class NodeView : public Attributes {
 public:
  NodeView(const Runtime& runtime, const OrtNode* node);

  bool Int(const char* name, int64_t* value) const override;
  bool String(const char* name, std::string* value) const override;
  bool Float(const char* name, float* value) const override;
  bool Ints(const char* name, std::vector<int64_t>* values) const;
  int64_t IntOr(const char* name, int64_t otherwise) const;

  const std::string& domain() const { return domain_; }  // "" is ai.onnx
  const std::string& type() const { return type_; }
  std::string Name() const;
  int SinceVersion() const;
  // Whether no provider has it yet, or this one.
  bool Free() const;

  size_t Inputs() const { return inputs_.size(); }
  size_t Outputs() const { return outputs_.size(); }
  bool Has(size_t input) const { return input < inputs_.size() && inputs_[input]; }
  bool HasOutput(size_t output) const { return output < outputs_.size() && outputs_[output]; }
  // The functions below throw std::invalid_argument where the input is absent or no tensor.
  std::string InputName(size_t index) const;
  std::string OutputName(size_t index) const;
  ONNXTensorElementDataType InputType(size_t index) const;
  Shape InputShape(size_t index) const;  // -1 where a dimension is not known; empty: a scalar, or nothing is known
  ONNXTensorElementDataType OutputType(size_t index) const;
  Shape OutputShape(size_t index) const;  // as InputShape
  // How often nodes read it, those of subgraphs too, and whether the graph gives it to its caller.
  size_t Readers(size_t output) const;
  bool IsGraphOutput(size_t output) const;
  bool IsConstant(size_t index) const;
  // A constant of this very graph, in host memory, as long as the graph exists; null: it is none.
  const OrtValue* Constant(size_t index) const;

  const OrtNode* node() const { return node_; }

 private:
  const OrtOpAttr* Find(const char* name) const;
  const OrtValueInfo* Input(size_t index) const;
  const OrtValueInfo* Output(size_t index) const;
  Shape ShapeOf(const OrtValueInfo* value) const;
  const OrtTensorTypeAndShapeInfo* TensorInfo(const OrtValueInfo* value) const;

  const Runtime& runtime_;
  const OrtNode* const node_;
  std::string domain_, type_;
  std::vector<const OrtValueInfo*> inputs_, outputs_;
};

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_NODE_VIEW_H_
