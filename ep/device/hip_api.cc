#include "device/hip_api.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

namespace mxort::device {
namespace {

constexpr const char* kLibraries[] = {"libamdhip64.so.7", "libamdhip64.so.6"};
constexpr int kOldestRuntime = 60000000;

constexpr const char* kForked =
    "the HIP runtime does not survive fork, and this process is a child of one that had loaded it; start workers by "
    "spawn or forkserver, or use the GPU in them only";

std::string VersionOf(int version) {
  return std::to_string(version / 10000000) + "." + std::to_string(version / 100000 % 100) + "." +
         std::to_string(version % 100000);
}

struct Opened {
  void* handle = nullptr;
  std::string name, problem;
};

// Files to open one after the other. ROCm in a container or from an archive is often not known to the dynamic linker.
std::vector<std::string> Candidates() {
  std::vector<std::string> folders = {""};
  for (const char* variable : {"ROCM_PATH", "HIP_PATH"}) {
    const char* path = std::getenv(variable);
    if (path != nullptr && *path != '\0') folders.push_back(std::string(path) + "/lib/");
  }
  folders.push_back("/opt/rocm/lib/");
  std::vector<std::string> files;
  for (const std::string& folder : folders) {
    for (const char* name : kLibraries) files.push_back(folder + name);
  }
  return files;
}

// The file that a function of the runtime is from; "" where the linker does not know.
std::string FileOf(const void* function) {
  Dl_info info;
  return function && dladdr(function, &info) && info.dli_fname ? info.dli_fname : "";
}

// The runtime that the process has loaded, under whatever name: PyTorch's wheels bring their own copy. A second one
// beside it would know nothing of its streams and memory.
std::string LoadedRuntime() {
  const std::string global = FileOf(dlsym(RTLD_DEFAULT, "hipGetDeviceCount"));
  if (!global.empty()) return global;
  std::string found;
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void* result) {
        const char* slash = std::strrchr(object->dlpi_name, '/');
        const char* name = slash ? slash + 1 : object->dlpi_name;
        if (std::strncmp(name, "libamdhip64", std::strlen("libamdhip64")) != 0) return 0;
        *static_cast<std::string*>(result) = object->dlpi_name;
        return 1;
      },
      &found);
  return found;
}

Opened Open() {
  if (const char* path = std::getenv("MXORT_HIP_LIBRARY"); path != nullptr && *path != '\0') {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return {handle, path, handle ? "" : std::string("MXORT_HIP_LIBRARY: ") + dlerror()};
  }
  if (const std::string loaded = LoadedRuntime(); !loaded.empty()) {
    if (void* handle = dlopen(loaded.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD)) return {handle, loaded, ""};
  }
  std::string reasons;  // each names its file, or what that file needs and what is missing
  for (const std::string& file : Candidates()) {
    if (void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return {handle, file, ""};
    reasons += (reasons.empty() ? "" : "; ") + std::string(dlerror());
  }
  return {
      nullptr, "",
      "no HIP runtime can be loaded (is ROCm installed? set ROCM_PATH to its folder, or tell ldconfig): " + reasons};
}

Status Unavailable(std::string message) { return {ErrorCode::kUnavailable, std::move(message)}; }

template <class Signature>
bool Resolve(void* handle, const char* name, Function<Signature>* function) {
  function->store(reinterpret_cast<typename Function<Signature>::Pointer>(dlsym(handle, name)));
  return function->load() != nullptr;
}

HipApi* loaded_api = nullptr;  // what Disconnect is for
bool forked = false;

template <class... Parameters>
int Deinitialized(Parameters...) {
  return abi::kDeinitialized;
}

void Disconnect() {
#define MXORT_HIP_DISCONNECT(name, parameters) loaded_api->name.store(&Deinitialized);
  MXORT_HIP_FUNCTIONS(MXORT_HIP_DISCONNECT)
#undef MXORT_HIP_DISCONNECT
  loaded_api->hipGetErrorName.store([](int) { return "hipErrorDeinitialized"; });
}

// Registered after the runtime's own destructors, so called before them.
void DisconnectInTime(HipApi* api) {
  loaded_api = api;
  std::atexit(Disconnect);
  pthread_atfork(nullptr, nullptr, [] {
    forked = true;
    Disconnect();
  });
}

Status Load(HipApi* api) {
  const Opened opened = Open();
  if (!opened.handle) return Unavailable(opened.problem);
  api->library = opened.name;
  const auto missing = [&](const char* name) {
    return Unavailable(opened.name + ": function " + name + " is missing; HIP 6.0 or later is needed");
  };
  // The version first: of an old runtime it tells more than the first function that it lacks.
  if (!Resolve(opened.handle, "hipRuntimeGetVersion", &api->hipRuntimeGetVersion)) {
    return missing("hipRuntimeGetVersion");
  }
  const int error = api->hipRuntimeGetVersion(&api->runtime_version);
  if (error == abi::kSuccess && api->runtime_version < kOldestRuntime) {
    return Unavailable(opened.name + ": HIP runtime " + api->VersionText() + " is too old, 6.0 or later is needed");
  }
  if (!Resolve(opened.handle, "hipGetErrorName", &api->hipGetErrorName)) return missing("hipGetErrorName");
#define MXORT_HIP_RESOLVE(name, parameters) \
  if (!Resolve(opened.handle, #name, &api->name)) return missing(#name);
  MXORT_HIP_FUNCTIONS(MXORT_HIP_RESOLVE)
#undef MXORT_HIP_RESOLVE
  DisconnectInTime(api);
  if (const std::string file = FileOf(reinterpret_cast<void*>(api->hipGetDeviceCount.load())); !file.empty()) {
    api->library = file;
  }
  MXORT_RETURN_IF_ERROR(api->Check(error, "hipRuntimeGetVersion"));
  return api->Check(api->hipDriverGetVersion(&api->driver_version), "hipDriverGetVersion");
}

}  // namespace

std::string HipApi::VersionText() const { return VersionOf(runtime_version); }

Status HipApi::Check(int error, const char* what) const {
  if (error == abi::kSuccess) return {};
  (void)hipGetLastError();
  const ErrorCode code = error == abi::kOutOfMemory                                    ? ErrorCode::kOutOfMemory
                         : error == abi::kInsufficientDriver                           ? ErrorCode::kUnavailable
                         : error == abi::kInvalidValue || error == abi::kInvalidDevice ? ErrorCode::kInvalidArgument
                                                                                       : ErrorCode::kFailed;
  return {code, std::string(what) + ": " + hipGetErrorName(error) + (forked ? std::string(" (") + kForked + ")" : "")};
}

Status GetHip(const HipApi** api) {
  // Leaked on purpose: devices may be released after static destructors have run.
  static const auto& loaded = *[] {
    auto* result = new std::pair<HipApi, Status>;
    result->second = Load(&result->first);
    return result;
  }();
  *api = &loaded.first;
  if (forked) return Unavailable(kForked);
  return loaded.second;
}

}  // namespace mxort::device
