// HIP: devices, properties, errors, versions. Struct offsets and enum values are those of hip_runtime_api.h (HIP 6 and
// 7, hipDeviceProp_tR0600), measured with offsetof.
#include <cstdio>
#include <cstring>

#include "runtime.h"

using namespace hipsim;

namespace {

// Published figures of MI355X and MI300X; the name says that nothing here is one.
struct Model {
  const char *arch, *name, *full_arch;
  int units, clock_khz, memory_clock_khz, bus_bits, lds, minor, pci_device;
};
constexpr Model kModels[] = {
    {"gfx950", "hipsim gfx950 (simulated)", "gfx950:sramecc+:xnack-", 256, 2400000, 2000000, 8192, 163840, 5, 0x75A3},
    {"gfx942", "hipsim gfx942 (simulated)", "gfx942:sramecc+:xnack-", 304, 2100000, 1300000, 8192, 65536, 4, 0x74A1},
    // A device that no code object here is for.
    {"gfx90a", "hipsim gfx90a (simulated)", "gfx90a:sramecc+:xnack-", 104, 1700000, 1600000, 4096, 65536, 0, 0x740C},
};

const Model& model(int device) {
  for (const Model& m : kModels)
    if (config().devices[static_cast<size_t>(device)] == m.arch) return m;
  throw SimError("no such device", kInvalidDevice);
}

bool exists(int device) { return device >= 0 && device < static_cast<int>(config().devices.size()); }
int bus(int device) { return 5 + 16 * device; }

template <class T>
void at(void* p, size_t offset, T value) {
  memcpy(static_cast<char*>(p) + offset, &value, sizeof value);
}

int properties(void* p, int device) {
  if (!p || !exists(device)) return kInvalidDevice;
  const Model& m = model(device);
  memset(p, 0, 1472);
  snprintf(static_cast<char*>(p), 256, "%s", m.name);
  snprintf(static_cast<char*>(p) + 256, 16, "hipsim%d", device % 100);
  at<size_t>(p, 288, config().memory);
  at<size_t>(p, 296, static_cast<size_t>(m.lds));  // sharedMemPerBlock
  at<int>(p, 304, 65536), at<int>(p, 308, 64);     // regsPerBlock, warpSize
  at<size_t>(p, 312, 2147483647);
  at<int>(p, 320, 1024);
  for (size_t d = 0; d < 3; d++) at<int>(p, 324 + 4 * d, 1024), at<int>(p, 336 + 4 * d, d ? 65536 : 2147483647);
  at<int>(p, 348, m.clock_khz);
  at<size_t>(p, 352, 2147483647);
  at<int>(p, 360, 9), at<int>(p, 364, m.minor);
  at<size_t>(p, 368, 256), at<size_t>(p, 376, 256);
  at<int>(p, 388, m.units);
  at<int>(p, 400, 1), at<int>(p, 576, 1), at<int>(p, 580, 1);  // canMapHostMemory, concurrentKernels, ECC
  at<int>(p, 584, bus(device));
  at<int>(p, 600, 8), at<int>(p, 604, 1);
  at<int>(p, 608, m.memory_clock_khz), at<int>(p, 612, m.bus_bits), at<int>(p, 616, 4194304);
  at<int>(p, 624, 2048);
  at<size_t>(p, 640, static_cast<size_t>(m.lds));
  at<int>(p, 648, 131072);
  at<size_t>(p, 696, static_cast<size_t>(m.lds));  // sharedMemPerBlockOptin
  at<int>(p, 712, 2);
  snprintf(static_cast<char*>(p) + 1160, 256, "%s", m.full_arch);
  at<size_t>(p, 1416, static_cast<size_t>(m.lds));
  at<int>(p, 1424, 100000);
  return kSuccess;
}

int attribute(int* value, int which, int device) {
  if (!value || !exists(device)) return kInvalidDevice;
  const Model& m = model(device);
  switch (which) {
    case 0:
    case 3:
    case 8:
    case 85:
      *value = 1;
      break;  // ECC, map host memory, concurrent kernels, unified addressing
    case 5:
      *value = m.clock_khz;
      break;
    case 19:
      *value = 4194304;
      break;
    case 16:
    case 24:
    case 65:
    case 88:
      *value = 0;
      break;  // integrated, managed, pageable access, pools
    case 23:
      *value = 9;
      break;
    case 61:
      *value = m.minor;
      break;
    case 25:
      *value = 2;
      break;
    case 26:
    case 27:
    case 28:
    case 56:
      *value = 1024;
      break;
    case 29:
      *value = 2147483647;
      break;
    case 30:
    case 31:
      *value = 65536;
      break;
    case 57:
      *value = 2048;
      break;
    case 59:
      *value = m.bus_bits;
      break;
    case 60:
      *value = m.memory_clock_khz;
      break;
    case 63:
    case 10015:
      *value = m.units;
      break;
    case 67:
      *value = bus(device);
      break;
    case 68:
    case 69:
      *value = 0;
      break;
    case 71:
      *value = 65536;
      break;
    case 72:
      *value = 131072;
      break;
    case 74:
    case 75:
    case 76:
    case 10002:
      *value = m.lds;
      break;
    case 78:
      *value = 0;
      break;
    case 87:
      *value = 64;
      break;
    case 10000:
    case 10017:
      *value = 100000;
      break;
    case 10012:
      *value = 0;
      break;
    default:
      return kInvalidValue;
  }
  return kSuccess;
}

struct ErrorName {
  int code;
  const char *name, *text;
};
constexpr ErrorName kErrors[] = {
    {0, "hipSuccess", "no error"},
    {1, "hipErrorInvalidValue", "invalid argument"},
    {2, "hipErrorOutOfMemory", "out of memory"},
    {3, "hipErrorNotInitialized", "initialization error"},
    {9, "hipErrorInvalidConfiguration", "invalid configuration argument"},
    {17, "hipErrorInvalidDevicePointer", "invalid device pointer"},
    {98, "hipErrorInvalidDeviceFunction", "invalid device function"},
    {100, "hipErrorNoDevice", "no ROCm-capable device is detected"},
    {101, "hipErrorInvalidDevice", "invalid device ordinal"},
    {200, "hipErrorInvalidImage", "device kernel image is invalid"},
    {209, "hipErrorNoBinaryForGpu", "no kernel image is available for execution on the device"},
    {301, "hipErrorFileNotFound", "file not found"},
    {302, "hipErrorSharedObjectSymbolNotFound", "shared object symbol not found"},
    {400, "hipErrorInvalidHandle", "invalid resource handle"},
    {401, "hipErrorIllegalState", "the operation cannot be performed in the present state"},
    {500, "hipErrorNotFound", "named symbol not found"},
    {600, "hipErrorNotReady", "device not ready"},
    {700, "hipErrorIllegalAddress", "an illegal memory access was encountered"},
    {704, "hipErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {705, "hipErrorPeerAccessNotEnabled", "peer access has not been enabled"},
    {719, "hipErrorLaunchFailure", "unspecified launch failure"},
    {801, "hipErrorNotSupported", "operation not supported"},
    {900, "hipErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {901, "hipErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"},
    {903, "hipErrorStreamCaptureUnmatched", "the capture was not initiated in this stream"},
    {906, "hipErrorStreamCaptureImplicit", "operation would make the legacy stream depend on a capturing stream"},
    {999, "hipErrorUnknown", "unknown error"},
};

}  // namespace

bool hipsim::known_device(const std::string& arch) {
  for (const Model& m : kModels)
    if (arch == m.arch) return true;
  return false;
}

HIPSIM_API int hipInit(unsigned) {
  return guarded("hipInit", false, [] { return config().devices.empty() ? kNoDevice : kSuccess; });
}
HIPSIM_API int hipGetDeviceCount(int* n) {
  return guarded("hipGetDeviceCount", false, [&]() -> int {
    *n = static_cast<int>(config().devices.size());
    return *n ? kSuccess : kNoDevice;
  });
}
HIPSIM_API int hipSetDevice(int d) {
  return guarded("hipSetDevice", false, [&]() -> int {
    if (!exists(d)) return kInvalidDevice;
    current_device() = d;
    return kSuccess;
  });
}
HIPSIM_API int hipGetDevice(int* d) {
  return guarded("hipGetDevice", false, [&]() -> int {
    *d = current_device();
    return kSuccess;
  });
}
HIPSIM_API int hipDeviceGet(int* d, int ordinal) {
  return guarded("hipDeviceGet", false, [&]() -> int {
    *d = ordinal;
    return exists(ordinal) ? kSuccess : kInvalidDevice;
  });
}
HIPSIM_API int hipGetDevicePropertiesR0600(void* p, int d) {
  return guarded("hipGetDevicePropertiesR0600", false, [&] { return properties(p, d); });
}
HIPSIM_API int hipDeviceGetAttribute(int* v, int which, int d) {
  return guarded("hipDeviceGetAttribute", false, [&] { return attribute(v, which, d); });
}
HIPSIM_API int hipDeviceGetName(char* name, int size, int d) {
  return guarded("hipDeviceGetName", false, [&]() -> int {
    if (!exists(d)) return kInvalidDevice;
    snprintf(name, static_cast<size_t>(size), "%s", model(d).name);
    return kSuccess;
  });
}
HIPSIM_API int hipDeviceTotalMem(size_t* n, int d) {
  return guarded("hipDeviceTotalMem", false, [&]() -> int {
    *n = config().memory;
    return exists(d) ? kSuccess : kInvalidDevice;
  });
}
HIPSIM_API int hipDeviceGetPCIBusId(char* id, int size, int d) {
  return guarded("hipDeviceGetPCIBusId", false, [&]() -> int {
    if (!exists(d)) return kInvalidDevice;
    if (!id || size < 13) return kInvalidValue;
    snprintf(id, static_cast<size_t>(size), "0000:%02x:00.0", bus(d));
    return kSuccess;
  });
}
HIPSIM_API int hipDeviceGetByPCIBusId(int* d, const char* id) {
  return guarded("hipDeviceGetByPCIBusId", false, [&]() -> int {
    unsigned domain = 0, b = 0, device = 0, function = 0;
    if (!id || sscanf(id, "%x:%x:%x.%x", &domain, &b, &device, &function) < 3) return kInvalidValue;
    for (int k = 0; k < static_cast<int>(config().devices.size()); k++)
      if (domain == 0 && device == 0 && static_cast<int>(b) == bus(k)) {
        *d = k;
        return kSuccess;
      }
    return kInvalidDevice;
  });
}
HIPSIM_API int hipDeviceSynchronize() {
  return guarded("hipDeviceSynchronize", true, [] {
    refuse_while_capturing(current_device(), kCaptureUnsupported);
    drain_all(current_device());
    return device_error(current_device());
  });
}
HIPSIM_API int hipDeviceReset() {
  return guarded("hipDeviceReset", false, [] {
    runtime().sticky.erase(current_device());
    return kSuccess;
  });
}
HIPSIM_API int hipDeviceCanAccessPeer(int* can, int d, int peer) {
  return guarded("hipDeviceCanAccessPeer", false, [&]() -> int {
    *can = d != peer;
    return exists(d) && exists(peer) ? kSuccess : kInvalidDevice;
  });
}
HIPSIM_API int hipDeviceEnablePeerAccess(int peer, unsigned) {
  return guarded("hipDeviceEnablePeerAccess", true, [&]() -> int {
    if (!exists(peer) || peer == current_device()) return kInvalidDevice;
    if (peer_enabled(current_device(), peer)) return kPeerAlreadyEnabled;
    enable_peer(current_device(), peer, true);
    return kSuccess;
  });
}
HIPSIM_API int hipDeviceDisablePeerAccess(int peer) {
  return guarded("hipDeviceDisablePeerAccess", true, [&]() -> int {
    if (!peer_enabled(current_device(), peer)) return kPeerNotEnabled;
    enable_peer(current_device(), peer, false);
    return kSuccess;
  });
}
HIPSIM_API int hipRuntimeGetVersion(int* v) { return *v = 70000000, kSuccess; }
HIPSIM_API int hipDriverGetVersion(int* v) { return *v = 70000000, kSuccess; }
HIPSIM_API const char* hipGetErrorName(int code) {
  for (auto& e : kErrors)
    if (e.code == code) return e.name;
  return "hipErrorUnknown";
}
HIPSIM_API const char* hipGetErrorString(int code) {
  for (auto& e : kErrors)
    if (e.code == code) return e.text;
  return "unknown error";
}
HIPSIM_API int hipDrvGetErrorName(int code, const char** s) { return *s = hipGetErrorName(code), kSuccess; }
HIPSIM_API int hipDrvGetErrorString(int code, const char** s) { return *s = hipGetErrorString(code), kSuccess; }
HIPSIM_API int hipGetLastError() {
  int e = last_error();
  last_error() = 0;
  return e;
}
HIPSIM_API int hipPeekAtLastError() { return last_error(); }
