// Errors of the device layer as values: nothing below a C API may throw because a device failed.
#ifndef MXORT_DEVICE_STATUS_H_
#define MXORT_DEVICE_STATUS_H_

#include <string>
#include <utility>

namespace mxort::device {

enum class ErrorCode {
  kOk,
  kInvalidArgument,  // the caller's: an ordinal out of range, a misaligned pointer
  kOutOfMemory,      // the device has no more, or the arena's limit is reached
  kUnavailable,      // no HIP runtime, too old, or a function is missing in it
  kUnsupported,      // no kernel for this device or problem
  kFailed,           // a HIP call failed; after a lost device or a stopped kernel all later ones do too
};

// One line: what, the HIP error's name where there is one, got and expected.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == ErrorCode::kOk; }
  ErrorCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  ErrorCode code_ = ErrorCode::kOk;
  std::string message_;
};

#define MXORT_RETURN_IF_ERROR(expression)                                                             \
  do {                                                                                                \
    if (::mxort::device::Status mxort_status = (expression); !mxort_status.ok()) return mxort_status; \
  } while (false)

}  // namespace mxort::device

#endif  // MXORT_DEVICE_STATUS_H_
