// Weight layouts. `kStrip16` is shared by all CPU kernels.
#ifndef MXORT_KERNELS_LAYOUT_H_
#define MXORT_KERNELS_LAYOUT_H_

#include "kernels/kernel.h"
#include "mx_formats.h"

namespace mxort {

// A strip is 16 output columns. Along K it is cut into groups of 4 blocks (the last group may have fewer), each group
// contiguous, so that a kernel reads one sequential stream of 17 cache lines per 128 K:
//
//   strip s: | group 0: block 0 | block 1 | block 2 | block 3 | scales 0 | scales 1 | scales 2 | scales 3 | group 1 ...
//              256 bytes each ------------------------------   16 bytes each (one of each column)
//
//   block = 4 vectors of 64 bytes; vector i, 32-bit lane n (column n), nibble j of 16-bit half w  =  k 8i + 2j + w
//
// so byte b of a lane holds, low nibble first, k 8i + {0,4,1,5}[b] and k 8i + {2,6,3,7}[b]. Columns beyond N hold code
// 0.
inline constexpr int kGroupBlocks = 4;
inline constexpr int kBlockVectors = 4;
inline constexpr int kVectorBytes = 4 * kStripColumns;
inline constexpr int kVectorElements = kBlockSize / kBlockVectors;  // 8 k of a column in one 32-bit lane
inline constexpr int kBlockCodeBytes = kBlockVectors * kVectorBytes;
inline constexpr int kBlockBytes = kBlockCodeBytes + kStripColumns;  // codes and scales of one block of a strip

// Bit offset, in a 32-bit lane, of the nibble that holds the e-th (0..7) k of its vector.
MXORT_INLINE constexpr int NibbleShift(int e) { return 16 * (e & 1) + 4 * (e >> 1); }

MXORT_INLINE int64_t StripsOf(int64_t n) { return (n + kStripColumns - 1) / kStripColumns; }

// Bytes from one strip to the next: whole cache lines.
MXORT_INLINE int64_t StripBytes(int64_t blocks) { return (blocks * kBlockBytes + 63) / 64 * 64; }

// A block whose codes are all +-0 may carry any scale; 1 keeps it away from the rare scales.
MXORT_INLINE uint8_t CanonicalScale(const uint8_t* codes, uint8_t scale) {
  uint64_t half[2];
  __builtin_memcpy(half, codes, sizeof half);
  const bool zero = ((half[0] | half[1]) & 0x7777777777777777u) == 0;
  return zero && scale != kScaleNaN ? static_cast<uint8_t>(kScaleBias) : scale;
}

// Asks for a block of the stream 4 KB ahead of p. The processor's own prefetchers stop at each page of 4 KB; asking by
// hand, with the weights in huge pages (weight_memory.h), makes a few rows of A nearly as fast from memory as from the
// cache.
MXORT_INLINE void Prefetch(const uint8_t* p) {
  constexpr int kAhead = 4096, kLine = 64;
#pragma GCC unroll 8
  for (int i = 0; i < kBlockBytes; i += kLine) __builtin_prefetch(p + kAhead + i);
}

extern const WeightLayout kStrip16;

}  // namespace mxort

#endif  // MXORT_KERNELS_LAYOUT_H_
