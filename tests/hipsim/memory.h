// Device memory: one arena of address space per device, every allocation in its own 64 KiB blocks with a gap behind it.
#pragma once

#include "sim.h"

namespace hipsim {

struct Allocation {
  u64 base = 0, size = 0;
  int device = 0;  // -1: pinned host memory
  bool live = false, read_only = false;
};

// Returns 0 when the device's memory is used up. Device addresses fault when the host touches them.
u64 device_alloc(int device, u64 size, bool read_only = false);
u64 host_alloc(u64 size);
u64 internal_alloc(u64 size);   // kernel arguments: read-only for kernels, not yet written, not counted
bool device_free(u64 address);  // false: not the start of a live allocation
const Allocation* find_allocation(u64 address);  // containing `address`, live; else null
u64 device_used(int device);
u64 live_allocations();
void free_all();

bool in_arena(u64 address);
u8* backing(u64 address);  // where the host may touch an arena address
u8* shadow(u64 address);   // one byte per byte: 1 = written
void set_written(u64 address, u64 size);
void enable_peer(int device, int peer, bool on);
bool peer_enabled(int device, int peer);

// Check of a kernel's access; throws SimError. `cache` keeps the last allocation between calls.
struct AccessCache {
  u64 begin = 1, end = 0;
  bool writable = false;
};
u8* check_access(int device, u64 address, u32 bytes, bool write, AccessCache& cache, int lane);

// Uninitialised bytes among `bytes` at an arena address, bit per byte.
inline u32 unwritten(u64 address, u32 bytes) {
  const u8* sh = shadow(address);
  u32 mask = 0;
  for (u32 k = 0; k < bytes; k++) mask |= static_cast<u32>(sh[k] == 0) << k;
  return mask;
}

}  // namespace hipsim
