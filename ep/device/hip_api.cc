#include "device/hip_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>
#include <utility>

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

// A runtime that the process has loaded already goes first: streams of one are nothing to another.
Opened Open() {
  if (const char* path = std::getenv("MXORT_HIP_LIBRARY"); path != nullptr && *path != '\0') {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return {handle, path, handle ? "" : std::string("MXORT_HIP_LIBRARY: ") + dlerror()};
  }
  for (const int flags : {RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL}) {
    for (const char* name : kLibraries) {
      if (void* handle = dlopen(name, flags)) return {handle, name, ""};
    }
  }
  return {nullptr, "",
          std::string("no HIP runtime: neither ") + kLibraries[0] + " nor " + kLibraries[1] +
              " can be loaded (is ROCm installed?)"};
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
