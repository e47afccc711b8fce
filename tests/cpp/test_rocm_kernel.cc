// The custom op for ROCMExecutionProvider on a simulated GPU, driven through a table of functions that stands for ONNX
// Runtime: what the op asks of it and hands to the device layer. How that provider really answers, only it can show.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "kernels/check_problem.h"
#include "kernels/float16.h"
#include "ops/rocm_kernel.h"

// What ONNX Runtime keeps behind its opaque types, as far as the op sees it.
struct OrtStatus {
  const char* message;
};
struct OrtValue {
  mxort::Shape shape;
  void* data;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
};
struct OrtTensorTypeAndShapeInfo {
  const OrtValue* value;
};
struct OrtKernelInfo {
  const mxort::CheckProblem* problem;
  OrtValue inputs[mxort::kInputs];
  bool constant;
};
struct OrtKernelContext {
  OrtValue a, y;
  void* stream;
};

namespace {

using namespace mxort;
using namespace mxort::device;

constexpr int kOrdinal = 1;
constexpr int64_t kM = 5, kK = 96, kN = 40;

void Need(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "FAILED %s\n", status.message().c_str());
  std::exit(1);
}

OrtApi FakeApi() {
  OrtApi api{};
  api.GetErrorMessage = [](const OrtStatus* status) noexcept { return status->message; };
  api.ReleaseStatus = [](OrtStatus* status) noexcept { delete status; };
  api.KernelInfo_GetNodeName = [](const OrtKernelInfo*, char* out, size_t* size) noexcept -> OrtStatusPtr {
    if (out) std::memcpy(out, "node", 5);
    *size = 5;
    return nullptr;
  };
  api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name,
                                        int64_t* out) noexcept -> OrtStatusPtr {
    const MatMulSpec& spec = info->problem->spec;
    if (std::strcmp(name, "K") == 0) return *out = spec.K, nullptr;
    if (std::strcmp(name, "N") == 0) return *out = spec.N, nullptr;
    if (std::strcmp(name, "rotation") == 0) return *out = spec.rotation, nullptr;
    return new OrtStatus{"No attribute with this name"};
  };
  api.KernelInfoGetAttribute_string = [](const OrtKernelInfo*, const char*, char* out,
                                         size_t* size) noexcept -> OrtStatusPtr {
    if (out) std::memcpy(out, "mxfp4", 6);
    *size = 6;
    return nullptr;
  };
  api.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo* info, size_t index, int* is_constant,
                                             const OrtValue** out) noexcept -> OrtStatusPtr {
    *is_constant = info->constant || index != kBias;
    *out = *is_constant ? &info->inputs[index] : nullptr;
    return nullptr;
  };
  api.GetTensorTypeAndShape = [](const OrtValue* value, OrtTensorTypeAndShapeInfo** out) noexcept -> OrtStatusPtr {
    *out = new OrtTensorTypeAndShapeInfo{value};
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) noexcept { delete info; };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* out) noexcept -> OrtStatusPtr {
    *out = info->value->shape.size();
    return nullptr;
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t rank) noexcept -> OrtStatusPtr {
    std::copy_n(info->value->shape.begin(), rank, out);
    return nullptr;
  };
  api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info,
                                ONNXTensorElementDataType* out) noexcept -> OrtStatusPtr {
    *out = info->value->type;
    return nullptr;
  };
  api.GetTensorMutableData = [](OrtValue* value, void** out) noexcept -> OrtStatusPtr {
    *out = value->data;
    return nullptr;
  };
  // The provider's allocator is that of the second GPU.
  api.KernelInfoGetAllocator = [](const OrtKernelInfo*, OrtMemType, OrtAllocator** out) noexcept -> OrtStatusPtr {
    *out = new OrtAllocator{};
    return nullptr;
  };
  api.ReleaseAllocator = [](OrtAllocator* allocator) noexcept { delete allocator; };
  api.AllocatorGetInfo = [](const OrtAllocator*, const OrtMemoryInfo** out) noexcept -> OrtStatusPtr {
    *out = nullptr;
    return nullptr;
  };
  api.MemoryInfoGetId = [](const OrtMemoryInfo*, int* out) noexcept -> OrtStatusPtr {
    *out = kOrdinal;
    return nullptr;
  };
  api.KernelContext_GetInput = [](const OrtKernelContext* context, size_t,
                                  const OrtValue** out) noexcept -> OrtStatusPtr {
    *out = &context->a;
    return nullptr;
  };
  api.KernelContext_GetOutput = [](OrtKernelContext* context, size_t, const int64_t* dimensions, size_t rank,
                                   OrtValue** out) noexcept -> OrtStatusPtr {
    context->y.shape.assign(dimensions, dimensions + rank);
    *out = &context->y;
    return nullptr;
  };
  api.KernelContext_GetGPUComputeStream = [](const OrtKernelContext* context, void** out) noexcept -> OrtStatusPtr {
    *out = context->stream;
    return nullptr;
  };
  return api;
}

int passed = 0, failed = 0;

void Expect(bool ok, const char* what) {
  ++(ok ? passed : failed);
  if (!ok) std::fprintf(stderr, "FAILED %s\n", what);
}

template <class T>
void* Pointer(const std::vector<T>& v) {
  return const_cast<T*>(v.data());
}

}  // namespace

int main() {
  setenv("HIPSIM_DEVICES", "gfx950,gfx942", 1);
  const OrtApi api = FakeApi();
  CheckProblem problem({kK, kN, 32, ActivationFormat::kMxfp4, AccuracyLevel::kBf16}, kM);
  std::vector<uint16_t> half_bias;
  for (float& x : problem.bias) {
    half_bias.push_back(FloatToFloat16(x));
    x = Float16ToFloat(half_bias.back());
  }
  const int64_t blocks = BlocksOf(kK);
  OrtKernelInfo info{&problem,
                     {{},
                      {{kN, blocks * kPackedBlockBytes}, Pointer(problem.codes), ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
                      {{kN, blocks}, Pointer(problem.scales), ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
                      {{kN}, Pointer(problem.column_scale)},
                      {{kN}, Pointer(problem.bias)}},
                     true};
  std::shared_ptr<Device> gpu;
  Need(Device::Open(kOrdinal, &gpu));
  const auto arena = Arena::Create(gpu);
  std::unique_ptr<Stream> stream;
  Need(Stream::Create(gpu, &stream));
  // B, and the bias in float16, on the device, should a provider not heed the memory type that the op asks for.
  Buffer a, y, b, half;
  const size_t half_bytes = half_bias.size() * sizeof(uint16_t);
  std::vector<float> result(static_cast<size_t>(kM * kN)), expected(result);
  const size_t a_bytes = problem.a.size() * sizeof(float), y_bytes = result.size() * sizeof(float);
  Need(a.Allocate(arena, a_bytes, nullptr));
  Need(y.Allocate(arena, y_bytes, nullptr));
  Need(b.Allocate(arena, problem.codes.size(), nullptr));
  Need(Copy(kOrdinal, a.data(), kHost, problem.a.data(), a_bytes, nullptr));
  Need(Copy(kOrdinal, b.data(), kHost, problem.codes.data(), problem.codes.size(), nullptr));
  Need(half.Allocate(arena, half_bytes, nullptr));
  Need(Copy(kOrdinal, half.data(), kHost, half_bias.data(), half_bytes, nullptr));
  problem.Expected({0, kM}, expected.data());
  for (const bool on_device : {false, true}) {
    info.inputs[kB].data = on_device ? b.data() : Pointer(problem.codes);
    info.inputs[kBias].data = on_device ? half.data() : Pointer(problem.bias);
    info.inputs[kBias].type = on_device ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    const auto kernel = MakeRocmKernel(api, DataType::kFloat, &info);
    for (void* s : {stream->handle(), static_cast<void*>(nullptr)}) {
      OrtKernelContext context{{{1, kM, kK}, a.data()}, {{}, y.data()}, s};
      kernel->Compute(&context);
      Expect(context.y.shape == Shape({1, kM, kN}), "shape of Y");
      std::fill(result.begin(), result.end(), 0.0f);
      Need(Copy(kHost, result.data(), kOrdinal, y.data(), y_bytes, s));
      Need(stream->Synchronize());
      float worst = 0;
      for (size_t i = 0; i < result.size(); ++i) worst = std::max(worst, std::abs(result[i] - expected[i]));
      Expect(worst < 1e-3f, "Y is right");
    }
    OrtKernelContext none{{{0, kK}, nullptr}, {{}, nullptr}, stream->handle()};
    kernel->Compute(&none);
    Expect(none.y.shape == Shape({0, kN}), "no rows");
  }
  info.constant = false;
  try {
    MakeRocmKernel(api, DataType::kFloat, &info);
    Expect(false, "an input that is no constant is refused");
  } catch (const std::invalid_argument& error) {
    Expect(std::string(error.what()) == "input bias is no constant, which ROCMExecutionProvider needs", error.what());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
