// Device memory. Each device owns a slot of address space that is mapped twice from one memfd: the addresses that the
// program sees are PROT_NONE, so that a host access faults as it would without large BAR access; the runtime and the
// interpreter use the second mapping. Addresses are not reused before the slot (HIPSIM_ADDRESSES) is used up, so that a
// use after free is always seen.
#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

namespace hipsim {
namespace {

// Of one device. ThreadSanitizer leaves a program less than the default asks for.
const u64 kSlotBytes = [] {
  const char* text = getenv("HIPSIM_ADDRESSES");
  return text && *text ? strtoull(text, nullptr, 0) : 1ull << 40;
}();
constexpr u64 kBlock = 1 << 16;
constexpr int kHostSlot = 16, kSlots = 17;
constexpr u64 kMisalign = 256;  // hipMalloc promises 256 bytes, so kernels get no more than that

struct Slot {
  u64 base = 0;  // exposed
  u8* backing = nullptr;
  u8* shadow = nullptr;
  u32* table = nullptr;  // block -> allocation index
  int fd = -1;
  u64 next = kBlock;  // bump pointer, offset
  u64 used = 0;
};

std::mutex mutex;
Slot slots[kSlots];
u64 region = 0;  // address of slot 0; slots are contiguous
// Index 0: none; never shrinks, readers hold pointers; never destroyed, so that what it holds is no leak at exit.
auto& allocations = *new std::vector<Allocation*>{nullptr};
u64 live_count = 0;
std::set<std::pair<int, int>> peers;

void* map_or_die(void* at, u64 size, int protection, int flags, int fd) {
  void* p = mmap(at, size, protection, flags | MAP_NORESERVE, fd, 0);
  if (p == MAP_FAILED) fail("cannot reserve %llu bytes of address space", static_cast<unsigned long long>(size));
  return p;
}

Slot& slot(int index) {
  if (!region)
    region =
        reinterpret_cast<u64>(map_or_die(nullptr, kSlotBytes * kSlots, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  Slot& s = slots[index];
  if (s.base) return s;
  bool host = index == kHostSlot;
  s.fd = memfd_create("hipsim", MFD_CLOEXEC);
  if (s.fd < 0 || ftruncate(s.fd, static_cast<off_t>(kSlotBytes)) != 0) fail("memfd for device memory failed");
  s.base = region + kSlotBytes * static_cast<u64>(index);
  map_or_die(reinterpret_cast<void*>(s.base), kSlotBytes, host ? PROT_READ | PROT_WRITE : PROT_NONE,
             MAP_SHARED | MAP_FIXED, s.fd);
  s.backing = static_cast<u8*>(map_or_die(nullptr, kSlotBytes, PROT_READ | PROT_WRITE, MAP_SHARED, s.fd));
  s.shadow = static_cast<u8*>(map_or_die(nullptr, kSlotBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  s.table = static_cast<u32*>(
      map_or_die(nullptr, kSlotBytes / kBlock * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
  madvise(s.backing, kSlotBytes, MADV_DONTDUMP);
  return s;
}

int slot_of(u64 address) {
  if (!region || address < region || address >= region + kSlotBytes * kSlots) return -1;
  int index = static_cast<int>((address - region) / kSlotBytes);
  return slots[index].base ? index : -1;
}

u64 allocate(int index, u64 size, bool read_only) {
  std::lock_guard<std::mutex> lock(mutex);
  Slot& s = slot(index);
  u64 blocks = (size + kMisalign + kBlock - 1) / kBlock + 1;  // one block of gap
  if (s.next + blocks * kBlock > kSlotBytes)
    fail("hipsim: the addresses of device %d are used up (HIPSIM_ADDRESSES)", index);
  auto* a = new Allocation;
  a->base = s.base + s.next + kMisalign;
  a->size = size;
  a->device = index == kHostSlot ? -1 : index;
  a->live = true;
  a->read_only = read_only;
  allocations.push_back(a);
  for (u64 b = 0; b < blocks; b++) s.table[s.next / kBlock + b] = static_cast<u32>(allocations.size() - 1);
  memset(s.backing + s.next + kMisalign, 0xFF, size);
  s.next += blocks * kBlock;
  s.used += size;
  live_count += !read_only;
  return a->base;
}

Allocation* lookup(u64 address) {
  int index = slot_of(address);
  if (index < 0) return nullptr;
  return allocations[slots[index].table[(address - slots[index].base) / kBlock]];
}

void release(Allocation* a) {
  int index = slot_of(a->base);
  Slot& s = slots[index];
  a->live = false;
  s.used -= a->size;
  live_count -= !a->read_only;
  u64 first = (a->base - s.base) & ~u64{4095}, last = (a->base + a->size - s.base + 4095) & ~u64{4095};
  fallocate(s.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(first),
            static_cast<off_t>(last - first));
  madvise(s.shadow + first, last - first, MADV_DONTNEED);
}

}  // namespace

u64 device_alloc(int device, u64 size, bool read_only) {
  if (!read_only && slots[device].used + size > config().memory) return 0;
  return allocate(device, size, read_only);
}

u64 host_alloc(u64 size) {
  u64 address = allocate(kHostSlot, size, false);
  set_written(address, size);  // the host writes without telling us
  return address;
}

u64 internal_alloc(u64 size) { return allocate(kHostSlot, size, true); }

bool device_free(u64 address) {
  std::lock_guard<std::mutex> lock(mutex);
  Allocation* a = lookup(address);
  if (!a || !a->live || a->base != address) return false;
  release(a);
  return true;
}

const Allocation* find_allocation(u64 address) {
  std::lock_guard<std::mutex> lock(mutex);
  Allocation* a = lookup(address);
  return a && a->live && address >= a->base && address < a->base + a->size ? a : nullptr;
}

u64 device_used(int device) { return slots[device].used; }
u64 live_allocations() { return live_count; }

void free_all() {
  std::lock_guard<std::mutex> lock(mutex);
  for (Allocation* a : allocations)
    if (a && a->live) release(a);
  peers.clear();
}

bool in_arena(u64 address) { return slot_of(address) >= 0; }

u8* backing(u64 address) {
  const Slot& s = slots[slot_of(address)];
  return s.backing + (address - s.base);
}

u8* shadow(u64 address) {
  const Slot& s = slots[(address - region) / kSlotBytes];
  return s.shadow + (address - s.base);
}

void set_written(u64 address, u64 size) { memset(shadow(address), 1, size); }

void enable_peer(int device, int peer, bool on) {
  if (on)
    peers.insert({device, peer});
  else
    peers.erase({device, peer});
}
bool peer_enabled(int device, int peer) { return peers.count({device, peer}) > 0; }

u8* check_access(int device, u64 address, u32 bytes, bool write, AccessCache& cache, int lane) {
  if (address >= cache.begin && address + bytes <= cache.end && (!write || cache.writable)) return backing(address);
  auto say = [&](const std::string& why) {
    throw SimError(format("lane %d: %s of %u bytes at address 0x%llx: ", lane, write ? "write" : "read", bytes,
                          static_cast<unsigned long long>(address)) +
                       why,
                   700);
  };
  const Allocation* a;
  {
    std::lock_guard<std::mutex> lock(mutex);
    a = lookup(address);
  }
  if (!a) say("outside of every allocation");
  auto where = [&] {
    return format("allocation of %llu bytes at 0x%llx (offset %lld)", static_cast<unsigned long long>(a->size),
                  static_cast<unsigned long long>(a->base), static_cast<long long>(address - a->base));
  };
  if (!a->live) say("use after free, " + where());
  if (address < a->base || address + bytes > a->base + a->size) say("out of bounds of the " + where());
  if (write && a->read_only) say("write to code, constants or kernel arguments");
  if (a->device >= 0 && a->device != device && !peer_enabled(device, a->device))
    say(format("memory of device %d without peer access from device %d", a->device, device));
  cache = {a->base, a->base + a->size, !a->read_only};
  return backing(address);
}

}  // namespace hipsim
