#include "device/hip_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <utility>
#include <vector>

namespace mxort::device {
namespace {

constexpr const char* kLibraries[] = {"libamdhip64.so.7", "libamdhip64.so.6"};
constexpr int kOldestRuntime = 60000000;

// Values of hipError_t.
constexpr int kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInsufficientDriver = 35, kInvalidDevice = 101;

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
  if (const char* rocm = std::getenv("ROCM_PATH"); rocm != nullptr && *rocm != '\0') {
    folders.push_back(std::string(rocm) + "/lib/");
  }
  folders.push_back("/opt/rocm/lib/");
  std::vector<std::string> files;
  for (const std::string& folder : folders) {
    for (const char* name : kLibraries) files.push_back(folder + name);
  }
  return files;
}

// A runtime that the process has loaded already goes first: streams of one are nothing to another.
Opened Open() {
  if (const char* path = std::getenv("MXORT_HIP_LIBRARY"); path != nullptr && *path != '\0') {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return {handle, path, handle ? "" : std::string("MXORT_HIP_LIBRARY: ") + dlerror()};
  }
  for (const char* name : kLibraries) {
    if (void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD)) return {handle, name, ""};
  }
  std::string reasons;  // each names its file, or what that file needs and what is missing
  for (const std::string& file : Candidates()) {
    if (void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return {handle, file, ""};
    reasons += (reasons.empty() ? "" : "; ") + std::string(dlerror());
  }
  return {nullptr, "", "no HIP runtime can be loaded (is ROCm installed?): " + reasons};
}

Status Unavailable(std::string message) { return {ErrorCode::kUnavailable, std::move(message)}; }

template <class Function>
bool Resolve(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  return *function != nullptr;
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
  if (error == kSuccess && api->runtime_version < kOldestRuntime) {
    return Unavailable(opened.name + ": HIP runtime " + api->VersionText() + " is too old, 6.0 or later is needed");
  }
  if (!Resolve(opened.handle, "hipGetErrorName", &api->hipGetErrorName)) return missing("hipGetErrorName");
#define MXORT_HIP_RESOLVE(name, parameters) \
  if (!Resolve(opened.handle, #name, &api->name)) return missing(#name);
  MXORT_HIP_FUNCTIONS(MXORT_HIP_RESOLVE)
#undef MXORT_HIP_RESOLVE
  MXORT_RETURN_IF_ERROR(api->Check(error, "hipRuntimeGetVersion"));
  return api->Check(api->hipDriverGetVersion(&api->driver_version), "hipDriverGetVersion");
}

}  // namespace

std::string HipApi::VersionText() const { return VersionOf(runtime_version); }

Status HipApi::Check(int error, const char* what) const {
  if (error == kSuccess) return {};
  (void)hipGetLastError();
  const ErrorCode code = error == kOutOfMemory                               ? ErrorCode::kOutOfMemory
                         : error == kInsufficientDriver                      ? ErrorCode::kUnavailable
                         : error == kInvalidValue || error == kInvalidDevice ? ErrorCode::kInvalidArgument
                                                                             : ErrorCode::kFailed;
  return {code, std::string(what) + ": " + hipGetErrorName(error)};
}

Status GetHip(const HipApi** api) {
  // Leaked on purpose: devices may be released after static destructors have run.
  static const auto& loaded = *[] {
    auto* result = new std::pair<HipApi, Status>;
    result->second = Load(&result->first);
    return result;
  }();
  *api = &loaded.first;
  return loaded.second;
}

}  // namespace mxort::device
