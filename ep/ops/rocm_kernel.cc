#include "ops/rocm_kernel.h"

#include <array>
#include <map>
#include <mutex>
#include <vector>

#include "device/matmul_plan.h"
#include "kernels/float16.h"
#include "ops/device_status.h"
#include "ops/matmul_inputs.h"

namespace mxort {
namespace {

using namespace device;

// One arena for all nodes on a device.
std::shared_ptr<Arena> ArenaOf(int ordinal) {
  static auto& mutex = *new std::mutex;
  static auto& arenas = *new std::map<int, std::weak_ptr<Arena>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Arena> arena = arenas[ordinal].lock();
  if (!arena) {
    std::shared_ptr<Device> device;
    Check(Device::Open(ordinal, &device));
    arenas[ordinal] = arena = Arena::Create(device);
  }
  return arena;
}

// The device that the provider runs the node on: the one of its allocator.
int OrdinalOf(const OrtApi& api, const OrtKernelInfo* info) {
  OrtAllocator* allocator = nullptr;
  Check(api, api.KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator));
  const std::unique_ptr<OrtAllocator, decltype(api.ReleaseAllocator)> owner(allocator, api.ReleaseAllocator);
  const OrtMemoryInfo* memory = nullptr;
  Check(api, api.AllocatorGetInfo(allocator, &memory));
  int ordinal = 0;
  Check(api, api.MemoryInfoGetId(memory, &ordinal));
  return ordinal;
}

// The constant inputs on the host. The op asks for them there; should the provider hand over device memory after all,
// it is copied back.
class OnHost {
 public:
  explicit OnHost(const Inputs& inputs) : inputs_(inputs) {
    for (size_t i = kB; i < kInputs; ++i) {
      Tensor& tensor = inputs_[i];
      int ordinal = kHost;
      Check(DeviceOfPointer(tensor.data, &ordinal));
      if (ordinal == kHost) continue;
      size_t size = i < kColumnScale ? 1 : DataTypeBytes(DataTypeOf(static_cast<Input>(i), tensor.type));
      for (const int64_t dimension : tensor.shape) size *= static_cast<size_t>(dimension);
      copies_[i].resize(size);
      Check(Copy(kHost, copies_[i].data(), ordinal, tensor.data, size, nullptr));
      tensor.data = copies_[i].data();
    }
  }
  const Inputs& inputs() const { return inputs_; }

 private:
  Inputs inputs_;
  std::array<std::vector<char>, kInputs> copies_;
};

class RocmKernel : public OperatorKernel {
 public:
  RocmKernel(const OrtApi& api, DataType type, const OrtKernelInfo* info)
      : OperatorKernel(api, Mxfp4Operator(), type, info) {
    const Inputs inputs = ReadConstants(api, spec_, info);
    for (size_t i = kB; i < kInputs; ++i) {
      if (inputs[i].data) continue;
      throw std::invalid_argument(std::string("input ") + kInputNames[i] + " is no constant, which " + kRocmProvider +
                                  " needs");
    }
    arena_ = ArenaOf(OrdinalOf(api, info));
    const OnHost on_host(inputs);
    const HostInputs host(on_host.inputs());
    Check(MatMulPlan::Create(arena_, spec_, type_, host.get(), {}, &plan_));
  }

  void Compute(OrtKernelContext* context) const override {
    const Call call = BeginCall(api_, spec_, context);
    if (call.rows == 0) return;
    void *y = nullptr, *stream = nullptr;
    Check(api_, api_.GetTensorMutableData(call.y, &y));
    Check(api_, api_.KernelContext_GetGPUComputeStream(context, &stream));
    Check(plan_->Launch(stream, call.a.data, call.rows, y, arena_));
  }

 private:
  std::shared_ptr<Arena> arena_;
  std::unique_ptr<MatMulPlan> plan_;
};

}  // namespace

std::unique_ptr<OperatorKernel> MakeRocmKernel(const OrtApi& api, DataType type, const OrtKernelInfo* info) {
  return std::make_unique<RocmKernel>(api, type, info);
}

}  // namespace mxort
