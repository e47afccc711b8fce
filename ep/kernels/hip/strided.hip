// Every element of a tensor once: copies between views, and gathering.
#include "kernels/hip/strided.h"

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

template <class Word>
MXORT_DEVICE void CopyWords(const CopyArgs& args) {
  ForElements(args.count, [&](u32 index) __attribute__((always_inline)) {
    const Offsets<2> offsets = OffsetsOf(args.shape, index);
    static_cast<Word*>(args.out)[offsets.at[1]] = static_cast<const Word*>(args.in)[offsets.at[0]];
  });
}

MXORT_KERNEL(256, 4) copy_1(CopyArgs args) { CopyWords<u8>(args); }
MXORT_KERNEL(256, 4) copy_2(CopyArgs args) { CopyWords<u16>(args); }
MXORT_KERNEL(256, 4) copy_4(CopyArgs args) { CopyWords<u32>(args); }
MXORT_KERNEL(256, 4) copy_8(CopyArgs args) { CopyWords<u64>(args); }
MXORT_KERNEL(256, 4) copy_16(CopyArgs args) { CopyWords<u32x4>(args); }

// out = data at an offset to which indices in memory contribute. An index beyond its axis reads zero.
template <class Word>
MXORT_DEVICE void GatherWords(const GatherArgs& args) {
  ForElements(args.count, [&](u32 index) __attribute__((always_inline)) {
    const Offsets<3> offsets = OffsetsOf(args.shape, index);
    i64 at = offsets.at[0];
    bool inside = true;
#pragma clang loop unroll(disable)
    for (u32 q = 0; q < args.axes; ++q) {
      const i64 from = offsets.at[1] + q;
      const i64 i = static_cast<Type>(args.index_type) == Type::kInt64 ? static_cast<const i64*>(args.indices)[from]
                                                                       : static_cast<const i32*>(args.indices)[from];
      const i64 size = args.sizes[q], wrapped = i < 0 ? i + size : i;
      inside = inside && wrapped >= 0 && wrapped < size;
      at += wrapped * args.strides[q];
    }
    Word word{};
    if (inside) word = static_cast<const Word*>(args.data)[at];
    static_cast<Word*>(args.out)[offsets.at[2]] = word;
  });
}

MXORT_KERNEL(256, 4) gather_1(GatherArgs args) { GatherWords<u8>(args); }
MXORT_KERNEL(256, 4) gather_2(GatherArgs args) { GatherWords<u16>(args); }
MXORT_KERNEL(256, 4) gather_4(GatherArgs args) { GatherWords<u32>(args); }
MXORT_KERNEL(256, 4) gather_8(GatherArgs args) { GatherWords<u64>(args); }
MXORT_KERNEL(256, 4) gather_16(GatherArgs args) { GatherWords<u32x4>(args); }
#endif
