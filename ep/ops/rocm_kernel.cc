#include "ops/rocm_kernel.h"

#include <map>
#include <mutex>
#include <vector>

#include "device/matmul_plan.h"
#include "mx_formats.h"

namespace mxort {
namespace {

using namespace device;

void CheckDevice(const Status& status) {
  if (!status.ok()) throw OrtError(ORT_EP_FAIL, status.message().c_str());
}

// One arena for all nodes on a device.
std::shared_ptr<Arena> ArenaOf(int ordinal) {
  static auto& mutex = *new std::mutex;
  static auto& arenas = *new std::map<int, std::weak_ptr<Arena>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Arena> arena = arenas[ordinal].lock();
  if (!arena) {
    std::shared_ptr<Device> device;
    CheckDevice(Device::Open(ordinal, &device));
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

// A constant input on the host. The op asks for it there; should the provider hand over device memory after all, it is
// copied back.
class HostInput {
 public:
  HostInput(const void* data, size_t bytes) : data_(data) {
    int ordinal = kHost;
    CheckDevice(DeviceOfPointer(data, &ordinal));
    if (ordinal == kHost) return;
    copy_.resize(bytes);
    CheckDevice(Copy(kHost, copy_.data(), ordinal, data, bytes, nullptr));
    data_ = copy_.data();
  }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }

 private:
  const void* data_;
  std::vector<char> copy_;
};

class RocmKernel : public OperatorKernel {
 public:
  RocmKernel(const OrtApi& api, DataType type, const OrtKernelInfo* info)
      : OperatorKernel(api, Mxfp4Operator(), type, info) {
    const Inputs inputs = ReadConstants(info);
    for (size_t i = kB; i < kInputs; ++i) {
      if (inputs[i].data) continue;
      throw std::invalid_argument(std::string("input ") + kInputNames[i] + " is no constant, which " + kRocmProvider +
                                  " needs");
    }
    const auto blocks = static_cast<size_t>(spec_.N * BlocksOf(spec_.K));
    const size_t vector_bytes = static_cast<size_t>(spec_.N) * sizeof(float);
    arena_ = ArenaOf(OrdinalOf(api, info));
    const HostInput b(inputs[kB].data, blocks * kPackedBlockBytes), scale(inputs[kBScale].data, blocks);
    const HostInput column_scale(inputs[kColumnScale].data, vector_bytes), bias(inputs[kBias].data, vector_bytes);
    std::shared_ptr<const DeviceWeights> weights;
    CheckDevice(SharedDeviceWeights(
        arena_, spec_, {{b.as<uint8_t>(), scale.as<uint8_t>()}, column_scale.as<float>(), bias.as<float>()}, &weights));
    CheckDevice(MatMulPlan::Create(spec_, type_, std::move(weights), {}, &plan_));
  }

  void Compute(OrtKernelContext* context) const override {
    const Call call = Begin(context);
    if (call.rows == 0) return;
    void *y = nullptr, *stream = nullptr;
    Check(api_, api_.GetTensorMutableData(call.y, &y));
    Check(api_, api_.KernelContext_GetGPUComputeStream(context, &stream));
    CheckDevice(plan_->Launch(stream, call.a.data, call.rows, y, arena_));
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
