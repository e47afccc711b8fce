// OrtStatus to C++ exceptions and back. Only the C API is used: the C++ wrappers of newer headers call functions that
// older runtimes do not have, and read past the end of their table.
#ifndef MXORT_OPS_ORT_STATUS_H_
#define MXORT_OPS_ORT_STATUS_H_

#include <onnxruntime_c_api.h>

#include <stdexcept>
#include <string>

namespace mxort {

// An error that ONNX Runtime reported.
struct OrtError : std::runtime_error {
  OrtErrorCode code;
  OrtError(OrtErrorCode c, const char* message) : std::runtime_error(message), code(c) {}
};

inline void Check(const OrtApi& api, OrtStatus* status) {
  if (!status) return;
  const OrtError error(api.GetErrorCode(status), api.GetErrorMessage(status));
  api.ReleaseStatus(status);
  throw error;
}

// A status "where: what", or only "what" where there is no memory for both.
inline OrtStatus* MakeStatus(const OrtApi& api, OrtErrorCode code, const std::string& where,
                             const char* what) noexcept {
  try {
    return api.CreateStatus(code, (where + ": " + what).c_str());
  } catch (const std::exception&) {
    return api.CreateStatus(code, what);
  }
}

// Runs `body`; an exception becomes an OrtStatus whose message starts with `where`. Nothing leaves a C callback
// otherwise.
template <class Body>
OrtStatus* Guard(const OrtApi& api, const std::string& where, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const OrtError& e) {
    return MakeStatus(api, e.code, where, e.what());
  } catch (const std::invalid_argument& e) {
    return MakeStatus(api, ORT_INVALID_ARGUMENT, where, e.what());
  } catch (const std::exception& e) {
    return MakeStatus(api, ORT_FAIL, where, e.what());
  }
}

// The newest API that both this library's headers and the running ONNX Runtime have. The version string is parsed
// because asking an older runtime for an API that it lacks makes it print an error. Null: no common version.
const OrtApi* NegotiateApi(const OrtApiBase* base, uint32_t* version);

}  // namespace mxort

#endif  // MXORT_OPS_ORT_STATUS_H_
