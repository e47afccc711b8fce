// Copies from memory to LDS without going through registers ("direct to LDS"), and the waits that belong to them.
//
// The loads are inline assembly because the compiler, which knows the builtin of the same instruction, assumes that
// every LDS read may alias every such load and waits for all of them (vmcnt(0)) before the first ds_read. Here the
// kernel counts: vmcnt is decremented in issue order, so waiting for "at most n outstanding" is waiting for all but the
// last n.
#ifndef MXORT_KERNELS_HIP_COPY_H_
#define MXORT_KERNELS_HIP_COPY_H_

#include "kernels/hip/layout.h"
#include "kernels/hip/prelude.h"

namespace mxort::hip {

#if defined(__gfx950__)
inline constexpr int kCopyBytes = 16;  // bytes a lane moves with one load
#else
inline constexpr int kCopyBytes = 4;
#endif
inline constexpr int kLoadsPerSlot = kLaneSlot / kCopyBytes;

// A raw buffer descriptor: accesses at offset >= bytes read zero. Word 3: 32-bit data format, as all raw buffers here.
MXORT_DEVICE i32x4 Buffer(const void* base, u32 bytes) {
  const u64 address = reinterpret_cast<u64>(base);
  return i32x4{static_cast<i32>(Uniform(static_cast<u32>(address))),
               static_cast<i32>(Uniform(static_cast<u32>(address >> 32)) & 0xFFFF), static_cast<i32>(Uniform(bytes)),
               0x00027000};
}

// gfx9 wants one instruction between a write of m0 and a load that uses it. clang inserts it before its own loads but
// does not know that the assembly below is one. Either m0 is written well before the load (SetM0: no instruction of its
// own, the load then finds m0 as it wants it), or the load begins with a no-op (kWait).
MXORT_DEVICE void SetM0(u32 lds) { asm volatile("" ::"{m0}"(lds) : "memory"); }

#define MXORT_COPY(instruction)                                                                                       \
  if constexpr (kWait) {                                                                                              \
    asm volatile("s_nop 0\n\t" instruction " %1, %2, %3 offen offset:%4 lds" ::"{m0}"(lds), "v"(offset), "s"(buffer), \
                 "s"(scalar_offset), "n"(kOffset)                                                                     \
                 : "memory");                                                                                         \
  } else {                                                                                                            \
    asm volatile(instruction " %1, %2, %3 offen offset:%4 lds" ::"{m0}"(lds), "v"(offset), "s"(buffer),               \
                 "s"(scalar_offset), "n"(kOffset)                                                                     \
                 : "memory");                                                                                         \
  }
// LDS[lds + kOffset + lane * kCopyBytes] = buffer[offset + scalar_offset + kOffset]; `offset` is the lane's own.
template <int kOffset, bool kWait>
MXORT_DEVICE void CopySlot(u32 lds, i32x4 buffer, u32 offset, u32 scalar_offset) {
#if defined(__gfx950__)
  MXORT_COPY("buffer_load_dwordx4")
#else
  MXORT_COPY("buffer_load_dword")
#endif
}
// The same with 4 bytes a lane.
template <bool kWait>
MXORT_DEVICE void CopyScales(u32 lds, i32x4 buffer, u32 offset, u32 scalar_offset) {
  constexpr int kOffset = 0;
  MXORT_COPY("buffer_load_dword")
}
#undef MXORT_COPY

// gfx9 wants five instructions between a vector instruction that writes a scalar register (readfirstlane) and a load
// that reads it, too. tests/kernels_hip/test_gate.py checks both distances in the compiled code.
MXORT_DEVICE void SettleScalars() { asm volatile("s_nop 4" ::: "memory"); }

// Waits until at most kLoads of this wave's loads are outstanding, and all its LDS reads have returned.
// Encoding of the operand (gfx9): vmcnt in bits 3:0 and 15:14, expcnt in 6:4 (7: no wait), lgkmcnt in 11:8.
template <int kLoads>
MXORT_DEVICE void WaitLoadsAndReads() {
  static_assert(kLoads < 64, "vmcnt has six bits");
  __builtin_amdgcn_s_waitcnt((kLoads & 15) | (7 << 4) | (0 << 8) | ((kLoads >> 4) << 14));
}

MXORT_DEVICE void Barrier() { asm volatile("s_barrier" ::: "memory"); }

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_COPY_H_
