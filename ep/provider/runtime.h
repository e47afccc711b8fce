// The ONNX Runtime that loaded this library: its function tables, and small wrappers over them. One per runtime: a
// process may hold two.
#ifndef MXORT_PROVIDER_RUNTIME_H_
#define MXORT_PROVIDER_RUNTIME_H_

#include <onnxruntime_c_api.h>

#include <map>
#include <memory>
#include <string>

#include "ops/ort_status.h"

namespace mxort::provider {

inline constexpr const char* kEpName = "MxortExecutionProvider";
// AMD's own provider, under whose name ours may be registered: for programs that know what to do with that one alone.
inline constexpr const char* kAmdName = "AMDGPUExecutionProvider";
inline constexpr uint32_t kVendorId = 0x1002;  // AMD's PCI number: memory is shared with providers that use it too

inline constexpr uint32_t kOldestApi = 24;  // kernel registry, custom op domains of a provider

struct Runtime {
  const OrtApi* api = nullptr;
  const OrtEpApi* ep = nullptr;
  uint32_t version = 0;        // negotiated: ort_version_supported of every struct handed over
  const char* name = kEpName;  // of the provider under this registration

  void Check(OrtStatus* status) const { mxort::Check(*api, status); }
};

// Throws std::runtime_error with one clear line when the runtime is older than kOldestApi.
// `registration`: the name under which the library is registered.
Runtime MakeRuntime(const OrtApiBase* base, const char* registration);

using KeyValues = std::map<std::string, std::string>;
KeyValues ReadKeyValues(const Runtime& runtime, const OrtKeyValuePairs* pairs);

struct KeyValuePairsDeleter {
  const OrtApi* api;
  void operator()(OrtKeyValuePairs* pairs) const { api->ReleaseKeyValuePairs(pairs); }
};
using KeyValuePairsPtr = std::unique_ptr<OrtKeyValuePairs, KeyValuePairsDeleter>;
KeyValuePairsPtr MakeKeyValuePairs(const Runtime& runtime, const KeyValues& values);

// Where ONNX Runtime's messages go. Never throws.
class Logger {
 public:
  Logger(const Runtime& runtime, const OrtLogger* logger) : api_(runtime.api), logger_(logger) {}
  void Log(OrtLoggingLevel level, const std::string& message) const noexcept;

 private:
  const OrtApi* api_;
  const OrtLogger* logger_;
};

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_RUNTIME_H_
