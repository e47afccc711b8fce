// Weight layouts. `kStrip16` is shared by all CPU kernels of 4-bit weights, `kStrip16Byte` by those of wider
// minifloats, `kStrip16Int8` by those of MXINT8.
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

// The same strips and groups for weights of 6 and 8 bits, a byte each:
//
//   block = 16 vectors of 32 bytes; vector i, 16-bit lane n (column n), byte b  =  k 2i + b
//
// A byte is sign, 4 bits of exponent, 3 of mantissa, the subnormals below: E4M3's own codes, and E2M3's and E3M2's with
// their mantissa aligned (E3M2 fills two of the three bits). Shifted by 7 it is the magnitude of a float16 that is
// 2^(bias - 15) of the weight. No byte is E4M3's NaN: its block gets the NaN scale, as NaN takes the whole column.
inline constexpr int kByteVectorElements = 2;
inline constexpr int kByteVectorBytes = kByteVectorElements * kStripColumns;
inline constexpr int kByteBlockCodeBytes = kBlockSize * kStripColumns;

inline constexpr short kByteFloat16 = static_cast<short>(0xBF80);  // the bits of a float16 that come from a byte

// The same strips and groups for MXINT8, a byte of 64 * weight + 128 (kInt8Offset) each:
//
//   block = 8 vectors of 64 bytes; vector 2i + h, 32-bit lane n (column n), byte b  =  k 8i + 2h + {0,4,1,5}[b]
//
// which is the order that the nibbles of kStrip16 have once they are bytes, so that rows of A are prepared alike.
// Columns beyond N hold zero, and whatever that multiplies is not stored.
inline constexpr int kInt8Offset = 128;
inline constexpr int kInt8BlockCodeBytes = kBlockSize * kStripColumns;

// Where the e-th (0..7) of the k 8i.. is: which of the two vectors, and its bit offset in the 32-bit lane.
MXORT_INLINE constexpr int Int8Half(int e) { return (e >> 1) & 1; }
MXORT_INLINE constexpr int Int8Shift(int e) { return 16 * (e & 1) + 8 * (e >> 2); }

// What multiplies a byte as the float kernels decode it to the weight of format F: the value of its float16, or its
// integer.
template <class F>
MXORT_INLINE constexpr float ByteUnit() {
  return kTwosComplement<F> ? 1.0f / (1 << F::kMantissaBits) : static_cast<float>(1 << (15 - F::kBias));
}

MXORT_INLINE int64_t StripsOf(int64_t n) { return (n + kStripColumns - 1) / kStripColumns; }

// Bytes from one strip to the next: whole cache lines.
MXORT_INLINE int64_t StripBytes(int64_t blocks, int64_t block_bytes = kBlockBytes) {
  return (blocks * block_bytes + 63) / 64 * 64;
}

// The scale that a block is packed with. One whose codes are all +-0 may carry any: 1 keeps it away from the rare
// scales. One with a code that is NaN has the NaN scale, as NaN takes the whole column.
MXORT_INLINE uint8_t CanonicalScale(const uint8_t* codes, uint8_t scale) {  // of MXFP4, faster
  uint64_t half[2];
  __builtin_memcpy(half, codes, sizeof half);
  const bool zero = ((half[0] | half[1]) & 0x7777777777777777u) == 0;
  return zero && scale != kScaleNaN ? static_cast<uint8_t>(kScaleBias) : scale;
}

template <class F>
MXORT_INLINE uint8_t CanonicalScaleOf(const uint8_t* unpacked, uint8_t scale) {
  bool zero = true, nan = scale == kScaleNaN;
  for (int k = 0; k < kBlockSize; ++k) {
    const unsigned magnitude = unpacked[k] & (kTwosComplement<F> ? 0xFFu : SignBit<F>() - 1);
    zero &= magnitude == 0;
    nan |= !kTwosComplement<F> && magnitude >= F::kFirstSpecial;
  }
  return nan ? kScaleNaN : zero ? static_cast<uint8_t>(kScaleBias) : scale;
}

// Asks for a block of the stream 4 KB ahead of p. The processor's own prefetchers stop at each page of 4 KB; asking by
// hand, with the weights in huge pages (weight_memory.h), makes a few rows of A nearly as fast from memory as from the
// cache.
template <int kBytes>
MXORT_INLINE void Prefetch(const uint8_t* p) {
  constexpr int kAhead = 4096, kLine = 64;
#pragma GCC unroll 16
  for (int i = 0; i < kBytes; i += kLine) __builtin_prefetch(p + kAhead + i);
}

// The same pointer, of which the compiler forgets where it came from. Clang otherwise addresses the operands of an
// inner loop by a base and an index, and Intel's cores split an instruction with such an operand in two.
template <class T>
MXORT_INLINE const T* Opaque(const T* p) {
  asm("" : "+r"(p));
  return p;
}

extern const WeightLayout kStrip16, kStrip16Byte, kStrip16Int8;

}  // namespace mxort

#endif  // MXORT_KERNELS_LAYOUT_H_
