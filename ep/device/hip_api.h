// The HIP runtime (libamdhip64), opened with dlopen: this library loads and runs on machines that have none.
// Declarations of our own; no HIP header is used. Handles (streams, events, modules, functions) are void*.
#ifndef MXORT_DEVICE_HIP_API_H_
#define MXORT_DEVICE_HIP_API_H_

#include <atomic>
#include <cstddef>
#include <string>

#include "device/status.h"

namespace mxort::device {

// Values and layouts of hip_runtime_api.h, of HIP 6 and 7. tests/device/test_hip_contract.py compares them, and the
// functions below, with a header of HIP.
namespace abi {

// hipError_t
inline constexpr int kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kDeinitialized = 4, kInsufficientDriver = 35,
                     kNoDevice = 100, kInvalidDevice = 101, kCaptureInvalidated = 901;
// hipMemcpyKind, hipMemoryType, flags of streams and events
inline constexpr int kHostToDevice = 1, kDeviceToHost = 2, kDeviceToDevice = 3, kMemoryTypeDevice = 2;
inline constexpr unsigned kStreamNonBlocking = 1, kEventDisableTiming = 2;
// hipStreamCaptureMode: allocating is allowed; hipStreamCaptureStatus
inline constexpr int kCaptureRelaxed = 2, kCaptureStatusNone = 0, kCaptureStatusInvalidated = 2;
// hipDeviceProp_tR0600: its size, and offsets of the members that are used
inline constexpr size_t kPropertyBytes = 1472, kName = 0, kTotalGlobalMem = 288, kMultiProcessorCount = 388,
                        kGcnArchName = 1160;

struct PointerAttributes {  // hipPointerAttribute_t
  int type = 0, device = 0;
  void *device_pointer = nullptr, *host_pointer = nullptr;
  int is_managed = 0;
  unsigned allocation_flags = 0;
};

}  // namespace abi

// Every function used, with the parameters that HIP 6 and 7 document. All return hipError_t.
#define MXORT_HIP_FUNCTIONS(F)                                                                                    \
  F(hipRuntimeGetVersion, (int* version))                                                                         \
  F(hipDriverGetVersion, (int* version))                                                                          \
  F(hipGetLastError, ())                                                                                          \
  F(hipGetDeviceCount, (int* count))                                                                              \
  F(hipGetDevicePropertiesR0600, (void* properties, int device))                                                  \
  F(hipDeviceGetPCIBusId, (char* id, int size, int device))                                                       \
  F(hipGetDevice, (int* device))                                                                                  \
  F(hipSetDevice, (int device))                                                                                   \
  F(hipDeviceSynchronize, ())                                                                                     \
  F(hipMemGetInfo, (size_t* free, size_t* total))                                                                 \
  F(hipMalloc, (void** pointer, size_t bytes))                                                                    \
  F(hipFree, (void* pointer))                                                                                     \
  F(hipHostMalloc, (void** pointer, size_t bytes, unsigned flags))                                                \
  F(hipHostFree, (void* pointer))                                                                                 \
  F(hipPointerGetAttributes, (void* attributes, const void* pointer))                                             \
  F(hipMemcpyAsync, (void* to, const void* from, size_t bytes, int kind, void* stream))                           \
  F(hipMemcpyPeerAsync, (void* to, int to_device, const void* from, int from_device, size_t bytes, void* stream)) \
  F(hipStreamCreateWithFlags, (void** stream, unsigned flags))                                                    \
  F(hipStreamDestroy, (void* stream))                                                                             \
  F(hipStreamSynchronize, (void* stream))                                                                         \
  F(hipStreamWaitEvent, (void* stream, void* event, unsigned flags))                                              \
  F(hipStreamBeginCapture, (void* stream, int mode))                                                              \
  F(hipStreamEndCapture, (void* stream, void** graph))                                                            \
  F(hipStreamIsCapturing, (void* stream, int* status))                                                            \
  F(hipGraphInstantiate, (void** executable, void* graph, void* node, char* log, size_t log_bytes))               \
  F(hipGraphLaunch, (void* executable, void* stream))                                                             \
  F(hipGraphDestroy, (void* graph))                                                                               \
  F(hipGraphExecDestroy, (void* executable))                                                                      \
  F(hipEventCreateWithFlags, (void** event, unsigned flags))                                                      \
  F(hipEventDestroy, (void* event))                                                                               \
  F(hipEventRecord, (void* event, void* stream))                                                                  \
  F(hipEventSynchronize, (void* event))                                                                           \
  F(hipEventQuery, (void* event))                                                                                 \
  F(hipEventElapsedTime, (float* milliseconds, void* start, void* stop))                                          \
  F(hipModuleLoadData, (void** module, const void* image))                                                        \
  F(hipModuleUnload, (void* module))                                                                              \
  F(hipModuleGetFunction, (void** function, void* module, const char* name))                                      \
  F(hipModuleLaunchKernel,                                                                                        \
    (void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,       \
     unsigned block_z, unsigned shared_bytes, void* stream, void** parameters, void** extra))

// A function that may be replaced while other threads call it.
template <class Signature>
class Function;
template <class Result, class... Parameters>
class Function<Result(Parameters...)> {
 public:
  using Pointer = Result (*)(Parameters...);
  Result operator()(Parameters... arguments) const { return pointer_.load()(arguments...); }
  Pointer load() const { return pointer_.load(); }
  void store(Pointer pointer) { pointer_.store(pointer); }

 private:
  std::atomic<Pointer> pointer_{nullptr};
};

// The table of functions. One for the process, never closed.
//
// Where the runtime can no longer be called, every function returns an error without calling it, so that destructors
// need not know: at the end of the process (HIP takes its devices down before the objects that were made before it was
// loaded are gone, a static Ort::Session for one) and in a child of fork, which HIP does not survive. Atomic because
// other threads may still be running at the end.
struct HipApi {
#define MXORT_HIP_MEMBER(name, parameters) Function<int parameters> name;
  MXORT_HIP_FUNCTIONS(MXORT_HIP_MEMBER)
#undef MXORT_HIP_MEMBER
  Function<const char*(int error)> hipGetErrorName;
  std::string library;  // the file in use; before one was opened: a name, or the path that MXORT_HIP_LIBRARY gives
  int runtime_version = 0, driver_version = 0;  // major * 10^7 + minor * 10^5 + patch

  std::string VersionText() const;  // of the runtime: "7.0.0"
  // Ok, or "<what>: <hipErrorName>" with the code that fits it. Clears the runtime's last error, so that nobody else
  // in the process finds ours.
  Status Check(int error, const char* what) const;
};

// Opens the runtime at the first call, in this order: MXORT_HIP_LIBRARY (a path, then nothing else is tried), one that
// the process has loaded, then libamdhip64.so.7 and .so.6 where the dynamic linker finds them, in $ROCM_PATH/lib,
// $HIP_PATH/lib and in /opt/rocm/lib. The outcome, also a failure, is kept for the process. kUnavailable: none found,
// older than HIP 6.0, a function is missing (named), or this is a child of a process that had opened it. Any thread.
Status GetHip(const HipApi** api);

}  // namespace mxort::device

#endif  // MXORT_DEVICE_HIP_API_H_
