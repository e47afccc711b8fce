// LDS as bytes at 32-bit addresses.
#ifndef MXORT_KERNELS_HIP_LDS_H_
#define MXORT_KERNELS_HIP_LDS_H_

#include "kernels/hip/prelude.h"

namespace mxort::hip {

typedef __attribute__((address_space(3))) u8* LdsBytes;

MXORT_DEVICE u32 LdsAddress(LdsBytes p) { return static_cast<u32>(reinterpret_cast<__UINTPTR_TYPE__>(p)); }

template <class T>
MXORT_DEVICE T ReadLds(u32 address) {
  return *reinterpret_cast<__attribute__((address_space(3))) const T*>(static_cast<__UINTPTR_TYPE__>(address));
}

template <class T>
MXORT_DEVICE void WriteLds(u32 address, T x) {
  *reinterpret_cast<__attribute__((address_space(3))) T*>(static_cast<__UINTPTR_TYPE__>(address)) = x;
}

// Every wave of the workgroup has come here, and sees what the others have written, to LDS and to memory.
MXORT_DEVICE void Synchronize() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// The same of LDS alone: stores to memory stay on their way, which a loop that loads ahead would wait for otherwise.
MXORT_DEVICE void SynchronizeLds() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup", "local");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup", "local");
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_LDS_H_
