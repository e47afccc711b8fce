#include "provider/runtime.h"

#include <cstring>

namespace mxort::provider {

Runtime MakeRuntime(const OrtApiBase* base, const char* registration) {
  Runtime runtime;
  runtime.api = NegotiateApi(base, &runtime.version);
  if (!runtime.api || runtime.version < kOldestApi) {
    throw std::runtime_error(std::string("onnxruntime ") + base->GetVersionString() + " is too old: expected 1." +
                             std::to_string(kOldestApi) +
                             " or later (the CPU operators need 1.22: register_custom_ops_library)");
  }
  runtime.ep = runtime.api->GetEpApi();
  if (registration && std::strncmp(registration, kAmdName, std::strlen(kAmdName)) == 0) runtime.name = kAmdName;
  return runtime;
}

KeyValues ReadKeyValues(const Runtime& runtime, const OrtKeyValuePairs* pairs) {
  KeyValues values;
  if (!pairs) return values;
  const char* const* names = nullptr;
  const char* const* texts = nullptr;
  size_t count = 0;
  runtime.api->GetKeyValuePairs(pairs, &names, &texts, &count);
  for (size_t i = 0; i < count; ++i) values[names[i]] = texts[i];
  return values;
}

KeyValuePairsPtr MakeKeyValuePairs(const Runtime& runtime, const KeyValues& values) {
  OrtKeyValuePairs* pairs = nullptr;
  runtime.api->CreateKeyValuePairs(&pairs);
  for (const auto& [name, text] : values) runtime.api->AddKeyValuePair(pairs, name.c_str(), text.c_str());
  return {pairs, KeyValuePairsDeleter{runtime.api}};
}

void Logger::Log(OrtLoggingLevel level, const std::string& message) const noexcept {
  OrtStatus* status =
      api_->Logger_LogMessage(logger_, level, message.c_str(), ORT_TSTR(__FILE__), __LINE__, "MxortExecutionProvider");
  if (status) api_->ReleaseStatus(status);
}

}  // namespace mxort::provider
