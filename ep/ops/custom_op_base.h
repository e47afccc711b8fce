// What every custom op needs of ONNX Runtime's C API: reading nodes and tensors, threads, shapes.
#ifndef MXORT_OPS_CUSTOM_OP_BASE_H_
#define MXORT_OPS_CUSTOM_OP_BASE_H_

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <functional>
#include <string>

#include "ops/spec.h"

namespace mxort {

// The name of the node that a kernel is made for; empty where it has none.
std::string NodeName(const OrtApi& api, const OrtKernelInfo* info);

// What reading an attribute returned. An absent optional one leaves its default alone; anything else is an error. ONNX
// Runtime reports absence and a wrong type with the same code, hence the look at the text (the same from 1.22 to 1.31;
// a test pins it on each of them).
void CheckAttribute(const OrtApi& api, const char* name, bool optional, OrtStatus* status);

struct Tensor {
  Shape shape;
  void* data = nullptr;
};

Tensor ReadTensor(const OrtApi& api, const OrtValue* value);

// Throws std::invalid_argument where the input is absent.
const OrtValue* InputValue(const OrtApi& api, const OrtKernelContext* context, size_t index);

// Calls body(0) .. body(tasks - 1) on ONNX Runtime's own threads: the session's intra_op_num_threads is obeyed and
// nothing is oversubscribed. An exception (memory) must not cross ONNX Runtime's frames; the first one is carried over.
void Parallel(const OrtApi& api, OrtKernelContext* context, int64_t tasks, const std::function<void(int64_t)>& body);

// Gives output 0 the dimensions of input 0, and the integer attribute for the last of them (`replace`) or one more.
// Its type is input 0's in the first case (of ops that share a name ONNX Runtime asks only the first one), else float.
// The shape is left open where that of input 0 is unknown.
void InferLastDimension(const OrtApi& api, OrtShapeInferContext* context, const char* attribute, bool replace);

// An operator since version 1 with one output and nothing optional, on the CPU. Name, types and kernel are to be added.
OrtCustomOp BasicOp(uint32_t version);

}  // namespace mxort

#endif  // MXORT_OPS_CUSTOM_OP_BASE_H_
