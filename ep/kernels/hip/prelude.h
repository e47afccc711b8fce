// The few things device code needs from a language runtime, over clang builtins: no HIP header, no device library, so
// that any clang with the AMDGPU target compiles it (docs/mi355x.md, "Building").
#ifndef MXORT_KERNELS_HIP_PRELUDE_H_
#define MXORT_KERNELS_HIP_PRELUDE_H_

#define MXORT_DEVICE static __attribute__((device, always_inline)) inline
#define MXORT_METHOD __attribute__((device, always_inline)) inline
#define MXORT_LDS __attribute__((shared))
// A kernel of `threads` work items, `waves` (least, most) waves on each SIMD; 1, 1: all 512 registers are the wave's
// own.
#define MXORT_KERNEL(threads, ...) \
  extern "C"                       \
      __attribute__((global, amdgpu_flat_work_group_size(threads, threads), amdgpu_waves_per_eu(__VA_ARGS__))) void

namespace mxort::hip {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i32 = int;
using u64 = unsigned long long;
typedef u32 u32x2 __attribute__((ext_vector_type(2)));
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
typedef i32 i32x2 __attribute__((ext_vector_type(2)));
typedef i32 i32x4 __attribute__((ext_vector_type(4)));
typedef i32 i32x8 __attribute__((ext_vector_type(8)));
typedef i32 i32x16 __attribute__((ext_vector_type(16)));
typedef float f32x4 __attribute__((ext_vector_type(4)));

inline constexpr int kWave = 64;

MXORT_DEVICE u32 Thread() { return __builtin_amdgcn_workitem_id_x(); }
MXORT_DEVICE u32 Lane() { return Thread() % kWave; }
// Index of the wave in its workgroup, in a scalar register.
MXORT_DEVICE u32 WaveIndex() {
  return static_cast<u32>(__builtin_amdgcn_readfirstlane(static_cast<i32>(Thread() / kWave)));
}
MXORT_DEVICE u32 GroupX() { return __builtin_amdgcn_workgroup_id_x(); }
MXORT_DEVICE u32 GroupY() { return __builtin_amdgcn_workgroup_id_y(); }
MXORT_DEVICE u32 Uniform(u32 x) { return static_cast<u32>(__builtin_amdgcn_readfirstlane(static_cast<i32>(x))); }

// Hides where a value comes from: it is then kept in a register rather than computed again.
MXORT_DEVICE u32 Opaque(u32 x) {
  asm volatile("" : "+v"(x));
  return x;
}
MXORT_DEVICE u32 OpaqueScalar(u32 x) {
  asm volatile("" : "+s"(x));
  return x;
}

// Compile-time loops: `body` gets Constant<0>, Constant<1>, ... whose values may feed immediate operands.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
template <int kBegin, int kEnd, class Body>
MXORT_DEVICE void Unroll(const Body& body) {
  if constexpr (kBegin < kEnd) {
    body(Constant<kBegin>{});
    Unroll<kBegin + 1, kEnd>(body);
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_PRELUDE_H_
