// HIP: memory. Signatures and values from the HIP documentation; pointers and handles are passed as void*.
#include <cstring>

#include "runtime.h"

using namespace hipsim;

namespace {

u64 number(const void* p) { return reinterpret_cast<u64>(p); }

struct Place {
  const Allocation* allocation = nullptr;  // null: ordinary host memory
  bool device() const { return allocation && allocation->device >= 0; }
  bool pinned() const { return allocation && allocation->device < 0; }
};

// Checks that [p, p + size) lies in one allocation if p is an address of ours.
Place locate(const void* p, u64 size) {
  Place place;
  if (!in_arena(number(p))) return place;
  place.allocation = find_allocation(number(p));
  if (!place.allocation || number(p) + size > place.allocation->base + place.allocation->size)
    throw SimError(format("copy of %llu bytes at %p leaves its allocation or uses freed memory",
                          static_cast<unsigned long long>(size), p),
                   kInvalidValue);
  return place;
}

u8* touchable(const void* p, const Place& place) {
  return place.allocation ? backing(number(p)) : static_cast<u8*>(const_cast<void*>(p));
}

void count(const char* what, u64 n = 1) { runtime().counts[what] += static_cast<long>(n); }

// `blocking`: hipMemcpy. Copies that involve pageable host memory read the host at the call and write it before they
// return, as HIP documents; pinned memory is touched only when the stream gets there.
int copy(void* to, const void* from, u64 size, int kind, const StreamPtr& s, bool blocking) {
  if (size == 0) return kSuccess;
  if (!to || !from) return kInvalidValue;
  Place d = locate(to, size), f = locate(from, size);
  if ((kind == 1 && (!d.device() || f.device())) || (kind == 2 && (!f.device() || d.device())) ||
      (kind == 3 && (!d.allocation || !f.allocation)) || (kind == 0 && (d.device() || f.device())) || kind < 0 ||
      kind > 4)
    throw SimError(format("copy kind %d does not fit its pointers", kind), kInvalidValue);
  if (blocking) refuse_while_capturing(s->device, kCaptureImplicit);
  if (d.device() && f.device())
    count("copies_on_device");
  else if (d.device())
    count("copies_to_device"), count("bytes_to_device", size);
  else if (f.device())
    count("copies_to_host"), count("bytes_to_host", size);
  std::shared_ptr<std::vector<u8>> staged;
  if (!f.allocation)
    staged = std::make_shared<std::vector<u8>>(static_cast<const u8*>(from), static_cast<const u8*>(from) + size);
  enqueue(s, [=] {
    Place d2 = locate(to, size), f2 = locate(from, size);  // freed meanwhile?
    memmove(touchable(to, d2), staged ? staged->data() : touchable(from, f2), size);
    if (d2.device()) {
      if (f2.device())
        memmove(shadow(number(to)), shadow(number(from)), size);
      else
        set_written(number(to), size);
    }
  });
  if (blocking || (!d.allocation && !s->capture)) drain(s, s->issued);
  return device_error(s->device);
}

int fill(void* p, u64 value, u64 unit, u64 n, const StreamPtr& s, bool blocking) {
  u64 size = unit * n;
  if (size == 0) return kSuccess;
  if (!locate(p, size).allocation) return kInvalidValue;
  if (blocking) refuse_while_capturing(s->device, kCaptureImplicit);
  count("memsets");
  enqueue(s, [=] {
    Place place = locate(p, size);
    u8* at = touchable(p, place);
    if (unit == 1)
      memset(at, static_cast<int>(value & 255), size);
    else
      for (u64 k = 0; k < n; k++) memcpy(at + k * unit, &value, unit);
    set_written(number(p), size);
  });
  if (blocking) drain(s, s->issued);
  return device_error(s->device);
}

int allocate(void** out, u64 size) {
  if (!out) return kInvalidValue;
  *out = nullptr;
  if (size == 0) return kSuccess;
  u64 a = device_alloc(current_device(), size);
  *out = reinterpret_cast<void*>(a);
  return a ? kSuccess : kOutOfMemory;
}

}  // namespace

HIPSIM_API int hipMalloc(void** p, size_t size) {
  return guarded("hipMalloc", true, [&] { return allocate(p, size); });
}
HIPSIM_API int hipExtMallocWithFlags(void** p, size_t size, unsigned) {
  return guarded("hipExtMallocWithFlags", true, [&] { return allocate(p, size); });
}
HIPSIM_API int hipMallocAsync(void** p, size_t size, void*) {
  return guarded("hipMallocAsync", true, [&] { return allocate(p, size); });
}
HIPSIM_API int hipMallocManaged(void**, size_t, unsigned) {
  return guarded("hipMallocManaged", true, [] { return kNotSupported; });
}

HIPSIM_API int hipFree(void* p) {
  return guarded("hipFree", false, [&]() -> int {
    if (!p) return kSuccess;
    const Allocation* a = find_allocation(number(p));
    if (!a || a->base != number(p) || a->device < 0 || a->read_only) return kInvalidValue;
    int device = a->device;
    drain_all(device);  // hipFree waits for the device
    device_free(number(p));
    return device_error(device);
  });
}
HIPSIM_API int hipFreeAsync(void* p, void* stream) {
  return guarded("hipFreeAsync", false, [&]() -> int {
    if (!p) return kSuccess;
    StreamPtr s = stream_of(stream);
    const Allocation* a = find_allocation(number(p));
    if (!a || a->base != number(p) || a->device < 0) return kInvalidValue;
    enqueue(s, [p] { device_free(number(p)); });
    return device_error(s->device);
  });
}

HIPSIM_API int hipHostMalloc(void** p, size_t size, unsigned) {
  return guarded("hipHostMalloc", true, [&]() -> int {
    if (!p) return kInvalidValue;
    *p = size ? reinterpret_cast<void*>(host_alloc(size)) : nullptr;
    return kSuccess;
  });
}
HIPSIM_API int hipMallocHost(void** p, size_t size) { return hipHostMalloc(p, size, 0); }
HIPSIM_API int hipHostAlloc(void** p, size_t size, unsigned flags) { return hipHostMalloc(p, size, flags); }
HIPSIM_API int hipHostFree(void* p) {
  return guarded("hipHostFree", false, [&]() -> int {
    if (!p) return kSuccess;
    const Allocation* a = find_allocation(number(p));
    if (!a || a->base != number(p) || a->device >= 0) return kInvalidValue;
    for (size_t d = 0; d < config().devices.size(); d++) drain_all(static_cast<int>(d));
    device_free(number(p));
    return kSuccess;
  });
}
HIPSIM_API int hipFreeHost(void* p) { return hipHostFree(p); }
HIPSIM_API int hipHostRegister(void*, size_t, unsigned) {
  return guarded("hipHostRegister", true, [] { return kNotSupported; });
}
HIPSIM_API int hipHostUnregister(void*) {
  return guarded("hipHostUnregister", true, [] { return kNotSupported; });
}
HIPSIM_API int hipHostGetDevicePointer(void** d, void* h, unsigned) {
  return guarded("hipHostGetDevicePointer", true, [&]() -> int {
    const Allocation* a = find_allocation(number(h));
    if (!a || a->device >= 0) return kInvalidValue;
    *d = h;
    return kSuccess;
  });
}

HIPSIM_API int hipMemGetInfo(size_t* free_bytes, size_t* total) {
  return guarded("hipMemGetInfo", true, [&] {
    if (total) *total = config().memory;
    if (free_bytes) *free_bytes = config().memory - device_used(current_device());
    return kSuccess;
  });
}
HIPSIM_API int hipPointerGetAttributes(void* out, const void* p) {
  struct {
    int type, device;
    void *device_pointer, *host_pointer;
    int managed;
    unsigned flags;
  } r = {};
  return guarded("hipPointerGetAttributes", false, [&]() -> int {
    const Allocation* a = in_arena(number(p)) ? find_allocation(number(p)) : nullptr;
    if (a) {
      r.type = a->device >= 0 ? 2 : 1;
      r.device = a->device >= 0 ? a->device : 0;
      r.device_pointer = const_cast<void*>(p);
      r.host_pointer = a->device >= 0 ? nullptr : const_cast<void*>(p);
    }
    memcpy(out, &r, sizeof r);
    return a ? kSuccess : kInvalidValue;
  });
}

HIPSIM_API int hipMemcpy(void* d, const void* s, size_t n, int kind) {
  return guarded("hipMemcpy", true, [&] { return copy(d, s, n, kind, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemcpyAsync(void* d, const void* s, size_t n, int kind, void* st) {
  return guarded("hipMemcpyAsync", true, [&] { return copy(d, s, n, kind, stream_of(st), false); });
}
HIPSIM_API int hipMemcpyWithStream(void* d, const void* s, size_t n, int kind, void* st) {
  return guarded("hipMemcpyWithStream", true, [&] { return copy(d, s, n, kind, stream_of(st), true); });
}
HIPSIM_API int hipMemcpyHtoD(void* d, const void* s, size_t n) {
  return guarded("hipMemcpyHtoD", true, [&] { return copy(d, s, n, 1, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemcpyDtoH(void* d, void* s, size_t n) {
  return guarded("hipMemcpyDtoH", true, [&] { return copy(d, s, n, 2, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemcpyDtoD(void* d, void* s, size_t n) {
  return guarded("hipMemcpyDtoD", true, [&] { return copy(d, s, n, 3, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemcpyHtoDAsync(void* d, const void* s, size_t n, void* st) {
  return guarded("hipMemcpyHtoDAsync", true, [&] { return copy(d, s, n, 1, stream_of(st), false); });
}
HIPSIM_API int hipMemcpyDtoHAsync(void* d, void* s, size_t n, void* st) {
  return guarded("hipMemcpyDtoHAsync", true, [&] { return copy(d, s, n, 2, stream_of(st), false); });
}
HIPSIM_API int hipMemcpyDtoDAsync(void* d, void* s, size_t n, void* st) {
  return guarded("hipMemcpyDtoDAsync", true, [&] { return copy(d, s, n, 3, stream_of(st), false); });
}
HIPSIM_API int hipMemcpyPeer(void* d, int, const void* s, int, size_t n) {
  return guarded("hipMemcpyPeer", true, [&] { return copy(d, s, n, 3, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, void* st) {
  return guarded("hipMemcpyPeerAsync", true, [&] { return copy(d, s, n, 3, stream_of(st), false); });
}

HIPSIM_API int hipMemset(void* p, int v, size_t n) {
  return guarded("hipMemset", true, [&] { return fill(p, static_cast<u64>(v), 1, n, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemsetAsync(void* p, int v, size_t n, void* st) {
  return guarded("hipMemsetAsync", true, [&] { return fill(p, static_cast<u64>(v), 1, n, stream_of(st), false); });
}
HIPSIM_API int hipMemsetD8(void* p, unsigned char v, size_t n) {
  return guarded("hipMemsetD8", true, [&] { return fill(p, v, 1, n, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemsetD16(void* p, unsigned short v, size_t n) {
  return guarded("hipMemsetD16", true, [&] { return fill(p, v, 2, n, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemsetD32(void* p, int v, size_t n) {
  return guarded("hipMemsetD32", true, [&] { return fill(p, static_cast<u32>(v), 4, n, stream_of(nullptr), true); });
}
HIPSIM_API int hipMemsetD32Async(void* p, int v, size_t n, void* st) {
  return guarded("hipMemsetD32Async", true, [&] { return fill(p, static_cast<u32>(v), 4, n, stream_of(st), false); });
}
