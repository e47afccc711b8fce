// What every kernel of the provider has in common: the node when it is made, its inputs and outputs in a run, errors.
//
// A kernel is a class in ep/provider/ops that derives from NodeKernel, and a row of op_table.h.
#ifndef MXORT_PROVIDER_NODE_KERNEL_H_
#define MXORT_PROVIDER_NODE_KERNEL_H_

#include <deque>
#include <string>
#include <vector>

#include "device/arena.h"
#include "device/kernel.h"
#include "kernels/hip/args.h"
#include "ops/custom_op_base.h"
#include "ops/device_status.h"
#include "provider/ep.h"
#include "provider/runtime.h"

namespace mxort::provider {

struct OpRow;

// A node when its kernel is made. Lives as long as the constructor of the kernel runs.
class NodeInfo {
 public:
  NodeInfo(Ep& ep, const OpRow& row, const OrtKernelInfo* info)
      : ep(ep), row(row), info(info), attributes(*ep.runtime().api, info) {}

  Ep& ep;
  const OpRow& row;
  const OrtKernelInfo* const info;
  const KernelAttributes attributes;

  // An attribute, or what the operator says where it is absent.
  int64_t Int(const char* name, int64_t otherwise) const;
  float Float(const char* name, float otherwise) const;
  std::string String(const char* name, const char* otherwise) const;
  std::vector<int64_t> Ints(const char* name, bool* present = nullptr) const;

  size_t Inputs() const;
  size_t Outputs() const;
  // Undefined where the input is absent.
  ONNXTensorElementDataType InputType(size_t index) const;
  ONNXTensorElementDataType OutputType(size_t index) const;
};

// One run of a node.
class NodeCall {
 public:
  NodeCall(Ep& ep, const OpRow& row, OrtKernelContext* context);

  size_t Inputs() const { return inputs_; }
  bool Has(size_t index) const;
  // Throws std::invalid_argument where the input is absent, or lies elsewhere than on this provider's GPU although the
  // row does not ask for it on the host.
  Tensor Input(size_t index) const;
  // Of an input, wherever it lies.
  Shape ShapeOf(size_t index) const;
  // An int64 or int32 tensor that the row asks for on the host.
  std::vector<int64_t> HostInts(size_t index) const;

  // Allocates it; data is null where it has no elements, or where it is optional and nobody asks for it.
  Tensor Output(size_t index, const Shape& shape) const;

  hip::Type TypeOf(const Tensor& tensor) const;
  void* stream() const { return stream_; }
  OrtKernelContext* context() const { return context_; }
  const Runtime& runtime() const { return ep_.runtime(); }
  // Memory of the device for what is enqueued in this call.
  void* Workspace(size_t bytes);
  // Device to device, enqueued. Nothing where both are the same memory.
  void Copy(void* to, const void* from, size_t bytes) const;

 private:
  void CheckPlace(const std::string& what, const OrtValue* value) const;

  Ep& ep_;
  const OpRow& row_;
  OrtKernelContext* const context_;
  size_t inputs_ = 0;
  void* stream_ = nullptr;
  std::deque<device::Buffer> workspaces_;
};

class NodeKernel : public OrtKernelImpl {
 public:
  NodeKernel(const NodeKernel&) = delete;
  NodeKernel& operator=(const NodeKernel&) = delete;
  virtual ~NodeKernel() = default;

 protected:
  explicit NodeKernel(const NodeInfo& node);
  // Enqueues the node's work. Throws what ops/ort_status.h turns into one line behind the node's name.
  virtual void Run(NodeCall& call) = 0;
  // Of the device's code objects (device/kernel.h).
  device::Kernel Load(const char* object, const char* name) const;

  Ep& ep() const { return ep_; }
  const std::string& where() const { return where_; }

 private:
  Ep& ep_;
  const OpRow& row_;
  const std::string where_;  // "Softmax 'name'"
};

// Types of the device code. Throws std::invalid_argument for those it does not have.
hip::Type DeviceType(ONNXTensorElementDataType type);
size_t BytesOf(ONNXTensorElementDataType type);
int64_t ElementsOf(const Shape& shape);
int64_t ElementsOf(const Shape& shape, size_t begin, size_t end);  // of some axes
size_t BytesOf(const Tensor& tensor);
// -1 is the last axis. Throws std::invalid_argument beyond the rank.
size_t AxisOf(int64_t axis, size_t rank);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_NODE_KERNEL_H_
