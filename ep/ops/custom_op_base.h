// What every custom op needs of ONNX Runtime's C API: reading nodes and tensors, threads, shapes.
#ifndef MXORT_OPS_CUSTOM_OP_BASE_H_
#define MXORT_OPS_CUSTOM_OP_BASE_H_

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ops/spec.h"

namespace mxort {

// The name of the node that a kernel is made for; empty where it has none.
std::string NodeName(const OrtApi& api, const OrtKernelInfo* info);

// The attributes of the node that a kernel is made for.
class KernelAttributes : public Attributes {
 public:
  KernelAttributes(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  bool Int(const char* name, int64_t* value) const override;
  bool String(const char* name, std::string* value) const override;
  bool Float(const char* name, float* value) const override;
  bool Ints(const char* name, std::vector<int64_t>* values) const;

 private:
  bool Found(const char* name, OrtStatus* status) const;

  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

struct Tensor {
  Shape shape;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  void* data = nullptr;
};

Tensor ReadTensor(const OrtApi& api, const OrtValue* value);

// Throws std::invalid_argument where the input is absent.
const OrtValue* InputValue(const OrtApi& api, const OrtKernelContext* context, size_t index);

// Calls body(0) .. body(tasks - 1) on ONNX Runtime's own threads: the session's intra_op_num_threads is obeyed and
// nothing is oversubscribed. An exception (memory) must not cross ONNX Runtime's frames; the first one is carried over.
void Parallel(const OrtApi& api, OrtKernelContext* context, int64_t tasks, const std::function<void(int64_t)>& body);

// What shape inference knows of a value: -1 and a name, which may be empty, where a dimension has no size. No
// dimensions: a scalar, or of unknown rank.
struct Dimensions {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape sizes;
  std::vector<std::string> names;
};
Dimensions InputDimensions(const OrtApi& api, const OrtShapeInferContext* context, size_t index);
int64_t InferredInt(const OrtApi& api, const OrtShapeInferContext* context, const char* attribute);  // required
void SetOutputDimensions(const OrtApi& api, OrtShapeInferContext* context, size_t index, Dimensions dimensions);

// Gives output 0 the dimensions of input 0, and the integer attribute for the last of them (`replace`) or one more.
// Its type is that of input `type_of`: of ops that share a name ONNX Runtime asks only the first one. The shape is left
// open where that of input 0 is unknown.
void InferLastDimension(const OrtApi& api, OrtShapeInferContext* context, const char* attribute, bool replace,
                        size_t type_of);

// An operator since version 1 with one output and nothing optional, on the CPU. Name, types and kernel are to be added.
OrtCustomOp BasicOp(uint32_t version);

}  // namespace mxort

#endif  // MXORT_OPS_CUSTOM_OP_BASE_H_
