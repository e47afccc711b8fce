// Rows out of a quantised table, one kernel a format: (element * scale) * multiplier, each in float, as the operators
// on the CPU (ops/gather_op.cc).
#include "kernels/hip/args_gather.h"
#include "kernels/hip/element.h"
#include "mx_formats.h"

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

inline constexpr u32 kGatherThreads = 256, kThreadColumns = 4;

MXORT_DEVICE long long RowAt(const GatherMxArgs& args, u64 i) {
  const long long index = args.wide ? static_cast<const long long*>(args.indices)[i]
                                    : static_cast<long long>(static_cast<const i32*>(args.indices)[i]);
  const long long row = index < 0 ? index + args.rows : index;
  return row >= 0 && row < args.rows ? row : -1;
}

// Four neighbouring columns, whose codes fill whole bytes in every format.
template <class F>
MXORT_DEVICE void GatherColumns(const GatherMxArgs& args, u64 i, u32 column) {
  constexpr u32 kBits = mxort::CodeBits<F>(), kBytes = kBits * kThreadColumns / 8;
  const u64 blocks = (args.k + mxort::kBlockSize - 1) / mxort::kBlockSize, block = column / mxort::kBlockSize;
  const long long row = RowAt(args, i);
  float x[kThreadColumns];
  if (row < 0) {
    Unroll<0, kThreadColumns>([&](auto e)
                                  __attribute__((always_inline)) { x[e.value] = mxort::BitsFloat(mxort::kFloatNaN); });
  } else {
    const u64 at = static_cast<u64>(row) * blocks + block;
    const u8* codes = args.codes + at * mxort::PackedBytes<F>() + column % mxort::kBlockSize * kBits / 8;
    u32 packed = 0;
    Unroll<0, kBytes>([&](auto b) __attribute__((always_inline)) { packed |= u32{codes[b.value]} << (8 * b.value); });
    const float scale = mxort::DecodeScale(args.scales[at]);
    const float multiplier = LoadOne(args.type, args.multiplier, static_cast<u64>(row));
    Unroll<0, kThreadColumns>([&](auto e) __attribute__((always_inline)) {
      const u32 code = packed >> (kBits * e.value) & ((1u << kBits) - 1);
      x[e.value] = mxort::DecodeElement<F>(static_cast<u8>(code)) * scale * multiplier;
    });
  }
  Unroll<0, kThreadColumns>([&](auto e) __attribute__((always_inline)) {
    if (column + e.value < args.k) StoreOne(args.type, args.y, i * args.k + column + e.value, x[e.value]);
  });
}

template <class F>
MXORT_DEVICE void GatherMx(const GatherMxArgs& args) {
  const u32 column = (GroupX() * kGatherThreads + Thread()) * kThreadColumns;
  if (column >= args.k) return;
  for (u64 i = GroupY(); i < args.count; i += args.grid_rows) GatherColumns<F>(args, i, column);
}

#define MXORT_GATHER(name, format) \
  MXORT_KERNEL(256, 4) gather_##name(GatherMxArgs args) { GatherMx<mxort::format>(args); }
MXORT_GATHER(mxfp4, E2M1)
MXORT_GATHER(mxfp6_e2m3, E2M3)
MXORT_GATHER(mxfp6_e3m2, E3M2)
MXORT_GATHER(mxfp8_e4m3, E4M3)
MXORT_GATHER(mxint8, INT8)
#endif
