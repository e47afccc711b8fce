// Provider options, as the application gives them with the session: text by name.
#ifndef MXORT_PROVIDER_OPTIONS_H_
#define MXORT_PROVIDER_OPTIONS_H_

#include <cstdint>
#include <optional>

#include "provider/runtime.h"

namespace mxort::provider {

struct Options {
  std::optional<int> device_id;  // ordinal of the HIP runtime; without it the device that the session was given
  uint64_t memory_limit = 0;     // bytes of device memory the session may hold; 0: what the device has
  bool self_check = true;        // run each kernel on a small problem before it is first used
  bool only_mx = false;          // take the operators of domain mxort alone, and leave the others to other providers
  bool fusion = true;            // several nodes in one launch where a kernel has them
  bool graph_capture = false;    // record the first run's launches and replay them; wants bound inputs and outputs
};

// Throws std::invalid_argument "provider option X: got 'Y', expected Z". Unknown names are errors: a misspelt limit
// must not be ignored.
Options ParseOptions(const KeyValues& values);

// The options of the provider of that name among the entries of a session's configuration.
KeyValues SelectOptions(const KeyValues& session_config, const char* provider);

}  // namespace mxort::provider

#endif  // MXORT_PROVIDER_OPTIONS_H_
