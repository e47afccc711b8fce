#include "kernels/layout.h"

#include <cstring>

namespace mxort {

int64_t BlocksOf(int64_t k) { return (k + kBlockSize - 1) / kBlockSize; }

namespace {

size_t Bytes(const MatMulSpec& spec) { return static_cast<size_t>(StripsOf(spec.N) * StripBytes(BlocksOf(spec.K))); }

// 8 codes in k order, nibble e of `x` = k e, to the order of a lane: nibble j of half w = k 2j + w. That is the even
// nibbles gathered in the low half and the odd ones in the high half:
//   in   k7 k6 k5 k4 k3 k2 k1 k0        out  k7 k5 k3 k1 k6 k4 k2 k0      (most significant nibble first)
uint32_t LaneOrder(uint32_t x) {
  auto gather_even = [](uint32_t v) {  // nibbles 0, 2, 4, 6 -> 0, 1, 2, 3
    v &= 0x0F0F0F0Fu;
    v = (v | (v >> 4)) & 0x00FF00FFu;
    return (v | (v >> 8)) & 0xFFFFu;
  };
  return gather_even(x) | (gather_even(x >> 4) << 16);
}

// A block whose codes are all +-0 may carry any scale; 1 keeps it away from the rare scales.
uint8_t CanonicalScale(bool zero, uint8_t scale) {
  return zero && scale != kScaleNaN ? static_cast<uint8_t>(kScaleBias) : scale;
}

// Packs strips of 16 columns, block by block: `place` puts a block's codes into its column of the strip's block and
// returns the scale for them.
template <int kCodeBytes, class Place>
void PackStrips(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end, uint8_t* packed,
                const Place& place) {
  const int64_t blocks = BlocksOf(spec.K), source_bytes = BlockBytes(spec.weight_format);
  const int64_t strip_bytes = StripBytes(blocks, kCodeBytes + kStripColumns);
  for (int64_t strip = begin; strip < end; ++strip) {
    uint8_t* out = packed + strip * strip_bytes;
    std::memset(out, 0, static_cast<size_t>(strip_bytes));
    for (int64_t column = 0; column < kStripColumns; ++column) {
      const int64_t n = strip * kStripColumns + column;
      if (n >= spec.N) break;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t group = block / kGroupBlocks * kGroupBlocks, in_group = block - group;
        const int64_t group_blocks = blocks - group < kGroupBlocks ? blocks - group : kGroupBlocks;
        uint8_t* base = out + group * (kCodeBytes + kStripColumns);
        const int64_t index = n * blocks + block;
        base[group_blocks * kCodeBytes + in_group * kStripColumns + column] =
            place(weights.codes + index * source_bytes, weights.scales[index], base + in_group * kCodeBytes, column);
      }
    }
  }
}

uint8_t PlaceNibbles(const uint8_t* codes, uint8_t scale, uint8_t* block, int64_t column) {
  static_assert(kPackedBlockBytes == 16 && kVectorElements == 8, "written for these");
  for (int i = 0; i < kBlockVectors; ++i) {
    uint32_t lane;
    std::memcpy(&lane, codes + 4 * i, sizeof lane);
    lane = LaneOrder(lane);
    std::memcpy(block + i * kVectorBytes + 4 * column, &lane, sizeof lane);
  }
  uint64_t half[2];
  std::memcpy(half, codes, sizeof half);
  return CanonicalScale(((half[0] | half[1]) & 0x7777777777777777u) == 0, scale);
}

template <class F>
uint8_t PlaceBytes(const uint8_t* packed, uint8_t scale, uint8_t* block, int64_t column) {
  uint8_t codes[kBlockSize];
  UnpackBlock<F>(packed, codes);
  bool zero = true;
  for (int k = 0; k < kBlockSize; ++k) {
    const unsigned magnitude = codes[k] & (SignBit<F>() - 1), sign = codes[k] & SignBit<F>() ? 0x80u : 0u;
    if (F::kExponentBits == 4 && magnitude >= F::kFirstSpecial) scale = kScaleNaN;
    zero &= magnitude == 0;
    block[k / kByteVectorElements * kByteVectorBytes + kByteVectorElements * column + k % kByteVectorElements] =
        static_cast<uint8_t>(sign | magnitude << (3 - F::kMantissaBits));
  }
  return CanonicalScale(zero, scale);
}

size_t ByteLayoutBytes(const MatMulSpec& spec) {
  return static_cast<size_t>(StripsOf(spec.N) * StripBytes(BlocksOf(spec.K), kByteBlockCodeBytes + kStripColumns));
}

bool IsMxfp4(WeightFormat format) { return format == WeightFormat::kMxfp4; }
bool IsWider(WeightFormat format) { return !IsMxfp4(format); }

void Pack(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end, uint8_t* packed) {
  PackStrips<kBlockCodeBytes>(spec, weights, begin, end, packed, PlaceNibbles);
}

void PackBytes(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end, uint8_t* packed) {
  WithElement(spec.weight_format, [&](auto element) {
    PackStrips<kByteBlockCodeBytes>(spec, weights, begin, end, packed, PlaceBytes<decltype(element)>);
  });
}

}  // namespace

const WeightLayout kStrip16 = {"strip16", IsMxfp4, Bytes, Pack};
const WeightLayout kStrip16Byte = {"strip16_byte", IsWider, ByteLayoutBytes, PackBytes};

}  // namespace mxort
