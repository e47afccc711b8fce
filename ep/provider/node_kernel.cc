#include "provider/node_kernel.h"

#include <cstring>
#include <memory>

#include "device/strided.h"
#include "provider/memory.h"
#include "provider/op_table.h"

namespace mxort::provider {

// ---- NodeInfo -------------------------------------------------------------------------------------------------------

int64_t NodeInfo::Int(const char* name, int64_t otherwise) const {
  int64_t value = 0;
  return attributes.Int(name, &value) ? value : otherwise;
}

float NodeInfo::Float(const char* name, float otherwise) const {
  float value = 0;
  return attributes.Float(name, &value) ? value : otherwise;
}

std::string NodeInfo::String(const char* name, const char* otherwise) const {
  std::string value;
  return attributes.String(name, &value) ? value : otherwise;
}

std::vector<int64_t> NodeInfo::Ints(const char* name, bool* present) const {
  std::vector<int64_t> values;
  const bool found = attributes.Ints(name, &values);
  if (present) *present = found;
  return values;
}

namespace {

ONNXTensorElementDataType ElementType(const Runtime& runtime, OrtTypeInfo* type) {
  const std::unique_ptr<OrtTypeInfo, decltype(runtime.api->ReleaseTypeInfo)> owner(type, runtime.api->ReleaseTypeInfo);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  if (type) runtime.Check(runtime.api->CastTypeInfoToTensorInfo(type, &tensor));
  if (tensor) runtime.Check(runtime.api->GetTensorElementType(tensor, &element));
  return element;
}

}  // namespace

size_t NodeInfo::Inputs() const {
  size_t count = 0;
  ep.runtime().Check(ep.runtime().api->KernelInfo_GetInputCount(info, &count));
  return count;
}

size_t NodeInfo::Outputs() const {
  size_t count = 0;
  ep.runtime().Check(ep.runtime().api->KernelInfo_GetOutputCount(info, &count));
  return count;
}

ONNXTensorElementDataType NodeInfo::InputType(size_t index) const {
  const Runtime& runtime = ep.runtime();
  OrtTypeInfo* type = nullptr;
  if (OrtStatus* status = runtime.api->KernelInfo_GetInputTypeInfo(info, index, &type)) {
    runtime.api->ReleaseStatus(status);  // an input that is not given has no type
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
  return ElementType(runtime, type);
}

ONNXTensorElementDataType NodeInfo::OutputType(size_t index) const {
  const Runtime& runtime = ep.runtime();
  OrtTypeInfo* type = nullptr;
  runtime.Check(runtime.api->KernelInfo_GetOutputTypeInfo(info, index, &type));
  return ElementType(runtime, type);
}

// ---- NodeCall -------------------------------------------------------------------------------------------------------

NodeCall::NodeCall(Ep& ep, const OpRow& row, OrtKernelContext* context) : ep_(ep), row_(row), context_(context) {
  runtime().Check(runtime().api->KernelContext_GetInputCount(context, &inputs_));
  runtime().Check(runtime().api->KernelContext_GetGPUComputeStream(context, &stream_));
}

bool NodeCall::Has(size_t index) const {
  if (index >= inputs_) return false;
  const OrtValue* value = nullptr;
  runtime().Check(runtime().api->KernelContext_GetInput(context_, index, &value));
  return value != nullptr;
}

Tensor NodeCall::Input(size_t index) const {
  const OrtValue* value = InputValue(*runtime().api, context_, index);
  const Tensor tensor = ReadTensor(*runtime().api, value);
  if (!row_.OnHost(row_.host_inputs, index) && ElementsOf(tensor.shape) > 0) {
    CheckPlace("input " + std::to_string(index), value);
  }
  return tensor;
}

Shape NodeCall::ShapeOf(size_t index) const {
  return ReadTensor(*runtime().api, InputValue(*runtime().api, context_, index)).shape;
}

std::vector<int64_t> NodeCall::HostInts(size_t index) const {
  const Tensor tensor = Input(index);
  const auto count = static_cast<size_t>(ElementsOf(tensor.shape));
  if (tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
    const auto* values = static_cast<const int64_t*>(tensor.data);
    return {values, values + count};
  }
  if (tensor.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) {
    const auto* values = static_cast<const int32_t*>(tensor.data);
    return {values, values + count};
  }
  throw std::invalid_argument("input " + std::to_string(index) + ": got type " + std::to_string(tensor.type) +
                              ", expected int64 or int32");
}

Tensor NodeCall::Output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  runtime().Check(runtime().api->KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
  Tensor tensor;
  tensor.shape = shape;
  if (!value) return tensor;
  tensor = ReadTensor(*runtime().api, value);
  if (ElementsOf(shape) == 0) {
    tensor.data = nullptr;
    return tensor;
  }
  if (!tensor.data) throw OrtError(ORT_EP_FAIL, ("no device memory: " + TakeAllocationError()).c_str());
  if (!row_.OnHost(row_.host_outputs, index)) CheckPlace("output " + std::to_string(index), value);
  return tensor;
}

// ONNX Runtime takes memory of one vendor for memory of one device, and with two GPU providers of different vendors
// hands host memory to the second.
void NodeCall::CheckPlace(const std::string& what, const OrtValue* value) const {
  const OrtMemoryDevice* memory = runtime().ep->Value_GetMemoryDevice(value);
  const bool gpu = runtime().ep->MemoryDevice_GetDeviceType(memory) == OrtMemoryInfoDeviceType_GPU;
  const auto ordinal = static_cast<int>(runtime().ep->MemoryDevice_GetDeviceId(memory));
  const int expected = ep_.device()->ordinal();
  if (gpu && ordinal == expected) return;
  throw std::invalid_argument(what + " is in memory of " + (gpu ? "GPU " + std::to_string(ordinal) : "the host") +
                              ", expected GPU " + std::to_string(expected));
}

hip::Type NodeCall::TypeOf(const Tensor& tensor) const { return DeviceType(tensor.type); }

// A captured graph uses the workspace whenever it is replayed, so it comes from what stays allocated.
void* NodeCall::Workspace(size_t bytes) {
  if (ep_.capturing()) return ep_.CaptureWorkspace(bytes);
  Check(workspaces_.emplace_back().Allocate(ep_.arena(), bytes, stream_));
  return workspaces_.back().data();
}

void NodeCall::Copy(void* to, const void* from, size_t bytes) const {
  if (to == from || bytes == 0) return;
  const int device = ep_.device()->ordinal();
  Check(device::Copy(device, to, device, from, bytes, stream_));
}

// ---- NodeKernel -----------------------------------------------------------------------------------------------------

NodeKernel::NodeKernel(const NodeInfo& node)
    : OrtKernelImpl{},
      ep_(node.ep),
      row_(node.row),
      where_(std::string(node.row.type) + " '" + NodeName(*node.ep.runtime().api, node.info) + "'") {
  ort_version_supported = ep_.runtime().version;
  Release = [](OrtKernelImpl* self) noexcept { delete static_cast<NodeKernel*>(self); };
  Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
    auto& kernel = *static_cast<NodeKernel*>(self);
    OrtStatus* status = Guard(*kernel.ep_.runtime().api, kernel.where_, [&] {
      NodeCall call(kernel.ep_, kernel.row_, context);
      kernel.Run(call);
    });
    if (!status || !kernel.ep_.RunFailed()) return status;
    kernel.ep_.runtime().api->ReleaseStatus(status);
    return nullptr;
  };
}

device::Kernel NodeKernel::Load(const char* object, const char* name) const {
  device::Kernel kernel;
  Check(device::Kernel::Load(ep_.device(), object, name, &kernel));
  return kernel;
}

// ---- types and shapes -----------------------------------------------------------------------------------------------

hip::Type DeviceType(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return hip::Type::kFloat;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return hip::Type::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return hip::Type::kBFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return hip::Type::kInt64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return hip::Type::kInt32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return hip::Type::kInt8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return hip::Type::kUint8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return hip::Type::kBool;
    default:
      throw std::invalid_argument("got tensor type " + std::to_string(type) + ", which no GPU kernel has");
  }
}

size_t BytesOf(ONNXTensorElementDataType type) { return device::BytesOf(DeviceType(type)); }

int64_t ElementsOf(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

int64_t ElementsOf(const Shape& shape, size_t begin, size_t end) {
  return ElementsOf({shape.begin() + static_cast<int64_t>(begin), shape.begin() + static_cast<int64_t>(end)});
}

size_t BytesOf(const Tensor& tensor) { return static_cast<size_t>(ElementsOf(tensor.shape)) * BytesOf(tensor.type); }

size_t AxisOf(int64_t axis, size_t rank) {
  const auto signed_rank = static_cast<int64_t>(rank);
  if (axis < -signed_rank || axis >= signed_rank) {
    throw std::invalid_argument("axis: got " + std::to_string(axis) + ", expected one of a tensor of rank " +
                                std::to_string(rank));
  }
  return static_cast<size_t>(axis < 0 ? axis + signed_rank : axis);
}

}  // namespace mxort::provider
