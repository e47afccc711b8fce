// The execution provider's end, in any order, in a process without Python: sanitizers see everything here.
//
//   test_unload ONNXRUNTIME LIBRARY MODEL STEPS
//
// Opens ONNX Runtime, registers the library and runs two sessions on its provider, then does STEPS in order:
//   1, 2  release the first, the second session       t  release a tensor in device memory
//   u     unregister the library                      e  release the environment
//   n     run the sessions that there are
//   d     dlclose the library                         r  all of this once more from the start
// What STEPS leaves out is left to the end of the process. With 1, 2, t and u done, nothing may be alive on the device.
#define ORT_API_MANUAL_INIT
#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr const char* kName = "mxort.virtual";

template <class Function>
Function* Find(void* library, const char* name) {
  void* p = dlsym(library, name);
  if (!p) throw std::runtime_error(dlerror());
  Function* function;
  std::memcpy(&function, &p, sizeof p);
  return function;
}

void* Open(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  return library;
}

struct Program {
  std::optional<Ort::Env> env;
  std::optional<Ort::Session> sessions[2];
  std::optional<Ort::Value> tensor;
  void* library = nullptr;

  Program(const char* path, const char* model) {
    library = Open(path);  // as an application that also uses it by other means
    env.emplace(ORT_LOGGING_LEVEL_ERROR, "unload");
    env->RegisterExecutionProviderLibrary(kName, path);
    std::vector<Ort::ConstEpDevice> devices;
    for (const Ort::ConstEpDevice& device : env->GetEpDevices()) {
      const bool ours = !std::strcmp(device.EpName(), "MxortExecutionProvider");
      if (ours && device.Device().Type() == OrtHardwareDeviceType_GPU) devices.push_back(device);
    }
    if (devices.size() != 1) throw std::runtime_error("expected one GPU");
    for (auto& session : sessions) {
      Ort::SessionOptions options;
      options.SetIntraOpNumThreads(1);
      options.AppendExecutionProvider_V2(*env, devices, std::unordered_map<std::string, std::string>{});
      session.emplace(*env, model, options);
      Run(*session);
    }
    const auto info = devices[0].GetMemoryInfo(OrtDeviceMemoryType_DEFAULT);
    const int64_t shape[] = {100};
    Ort::UnownedAllocator allocator = env->GetSharedAllocator(info);
    tensor = Ort::Value::CreateTensor<float>(allocator, shape, 1);
  }

  static void Run(Ort::Session& session) {
    const auto cpu = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
    shape[0] = 3;
    std::vector<float> x(static_cast<size_t>(shape[0] * shape[1]), 1.0f);
    const Ort::Value input = Ort::Value::CreateTensor<float>(cpu, x.data(), x.size(), shape.data(), shape.size());
    const char *in = "x", *out = "y";
    const auto outputs = session.Run(Ort::RunOptions(), &in, &input, 1, &out, 1);
    if (outputs[0].GetTensorTypeAndShapeInfo().GetShape()[0] != 3) throw std::runtime_error("wrong shape");
  }

  void Do(char step) {
    switch (step) {
      case '1':
      case '2':
        return sessions[step - '1'].reset();
      case 'n':
        for (auto& session : sessions) {
          if (session) Run(*session);
        }
        return;
      case 't':
        return tensor.reset();
      case 'u':
        env->UnregisterExecutionProviderLibrary(kName);
        return;
      case 'e':
        return env.reset();
      case 'd':
        dlclose(library);
        return;
      default:
        throw std::invalid_argument(std::string("unknown step ") + step);
    }
  }
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) throw std::invalid_argument("usage: test_unload ONNXRUNTIME LIBRARY MODEL STEPS");
  void* runtime = Open(argv[1]);
  Ort::InitApi(Find<const OrtApiBase*()>(runtime, "OrtGetApiBase")()->GetApi(ORT_API_VERSION));
  const std::string steps = argv[4];
  // Never destroyed: what the steps leave out is left to the end of the process. Static: reachable, and so no leak.
  static auto& programs = *new std::vector<Program*>;
  programs.push_back(new Program(argv[2], argv[3]));
  for (const char step : steps) {
    if (step == 'r') {
      programs.push_back(new Program(argv[2], argv[3]));
    } else {
      programs.back()->Do(step);
    }
  }
  const bool all = steps.find_first_of('r') == std::string::npos && steps.find('1') != std::string::npos &&
                   steps.find('2') != std::string::npos && steps.find('t') != std::string::npos &&
                   steps.find_first_of("ue") != std::string::npos;
  void* hip = Open(std::getenv("MXORT_HIP_LIBRARY"));
  std::printf("%s %s\n", all ? "released" : "ended", Find<const char*()>(hip, "hipsim_counters")());
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "test_unload: %s\n", e.what());
  return 1;
}
