// Errors of the device layer as exceptions that ops/ort_status.h's Guard turns into OrtStatus.
#ifndef MXORT_OPS_DEVICE_STATUS_H_
#define MXORT_OPS_DEVICE_STATUS_H_

#include "device/status.h"
#include "ops/ort_status.h"

namespace mxort {

inline OrtErrorCode OrtCodeOf(device::ErrorCode code) {
  switch (code) {
    case device::ErrorCode::kInvalidArgument:
      return ORT_INVALID_ARGUMENT;
    case device::ErrorCode::kUnsupported:
      return ORT_NOT_IMPLEMENTED;
    default:
      return ORT_EP_FAIL;
  }
}

inline void Check(const device::Status& status) {
  if (!status.ok()) throw OrtError(OrtCodeOf(status.code()), status.message().c_str());
}

}  // namespace mxort

#endif  // MXORT_OPS_DEVICE_STATUS_H_
