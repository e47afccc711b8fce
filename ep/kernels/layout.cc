#include "kernels/layout.h"

#include <algorithm>
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

// One column of one block: its 32 codes to `codes`, its scale to `scale`.
void PackColumn(const uint8_t* from, uint8_t from_scale, uint8_t* codes, uint8_t* scale) {
  static_assert(kPackedBlockBytes == 16 && kVectorElements == 8, "LaneOrder and CanonicalScale are written for these");
  for (int i = 0; i < kBlockVectors; ++i) {
    uint32_t lane;
    std::memcpy(&lane, from + 4 * i, sizeof lane);
    lane = LaneOrder(lane);
    std::memcpy(codes + i * kVectorBytes, &lane, sizeof lane);
  }
  *scale = CanonicalScale(from, from_scale);
}

// The same of a format F into bytes.
template <class F>
void PackByteColumn(const uint8_t* from, uint8_t from_scale, uint8_t* bytes, uint8_t* scale) {
  uint8_t codes[kBlockSize];
  UnpackBlock<F>(from, codes);
  for (int k = 0; k < kBlockSize; ++k) {
    const unsigned magnitude = codes[k] & (SignBit<F>() - 1), sign = codes[k] & SignBit<F>() ? 0x80u : 0u;
    bytes[k / kByteVectorElements * kByteVectorBytes + k % kByteVectorElements] =
        static_cast<uint8_t>(sign | magnitude << (3 - F::kMantissaBits));
  }
  *scale = CanonicalScaleOf<F>(codes, from_scale);
}

void PackInt8Column(const uint8_t* from, uint8_t from_scale, uint8_t* bytes, uint8_t* scale) {
  for (int k = 0; k < kBlockSize; ++k) {
    const int e = k % kVectorElements, vector = 2 * (k / kVectorElements) + Int8Half(e);
    bytes[vector * kVectorBytes + Int8Shift(e) / 8] = static_cast<uint8_t>(from[k] + kInt8Offset);
  }
  *scale = CanonicalScaleOf<INT8>(from, from_scale);
}

// Strips [begin, end) with kCodeBytes of codes in a block, kLaneBytes a column of a vector.
template <int kCodeBytes, int kLaneBytes, class PackOne>
void PackStrips(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end, uint8_t* packed,
                const PackOne& pack_column) {
  const int64_t blocks = BlocksOf(spec.K), source_bytes = BlockBytes(spec.weight_format);
  const int64_t block_bytes = kCodeBytes + kStripColumns, strip_bytes = StripBytes(blocks, block_bytes);
  for (int64_t strip = begin; strip < end; ++strip) {
    uint8_t* out = packed + strip * strip_bytes;
    const int64_t first = strip * kStripColumns, columns = std::min<int64_t>(kStripColumns, spec.N - first);
    if (columns < kStripColumns || blocks * block_bytes < strip_bytes) {
      std::memset(out, 0, static_cast<size_t>(strip_bytes));
    }
    for (int64_t block = 0; block < blocks; ++block) {  // sixteen streams in, one out
      const int64_t group = block / kGroupBlocks * kGroupBlocks, in_group = block - group;
      uint8_t* base = out + group * block_bytes;
      uint8_t* scales = base + std::min<int64_t>(kGroupBlocks, blocks - group) * kCodeBytes;
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t from = (first + column) * blocks + block;
        pack_column(weights.codes + from * source_bytes, weights.scales[from],
                    base + in_group * kCodeBytes + kLaneBytes * column, scales + in_group * kStripColumns + column);
      }
    }
  }
}

void Pack(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end, uint8_t* packed) {
  PackStrips<kBlockCodeBytes, 4>(spec, weights, begin, end, packed, PackColumn);
}

void PackBytes(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end, uint8_t* packed) {
  WithElement(spec.weight_format, [&](auto element) {
    if constexpr (!kTwosComplement<decltype(element)>) {
      PackStrips<kByteBlockCodeBytes, kByteVectorElements>(spec, weights, begin, end, packed,
                                                           PackByteColumn<decltype(element)>);
    }
  });
}

void PackInt8(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end, uint8_t* packed) {
  PackStrips<kInt8BlockCodeBytes, 4>(spec, weights, begin, end, packed, PackInt8Column);
}

static_assert(kByteBlockCodeBytes == kInt8BlockCodeBytes, "ByteLayoutBytes is for both");
size_t ByteLayoutBytes(const MatMulSpec& spec) {
  return static_cast<size_t>(StripsOf(spec.N) * StripBytes(BlocksOf(spec.K), kByteBlockCodeBytes + kStripColumns));
}

bool IsMxfp4(WeightFormat format) { return format == WeightFormat::kMxfp4; }
bool IsMxint8(WeightFormat format) { return format == WeightFormat::kMxint8; }
bool IsWideMinifloat(WeightFormat format) { return !IsMxfp4(format) && !IsMxint8(format); }

}  // namespace

const WeightLayout kStrip16 = {"strip16", IsMxfp4, Bytes, Pack};
const WeightLayout kStrip16Byte = {"strip16_byte", IsWideMinifloat, ByteLayoutBytes, PackBytes};
const WeightLayout kStrip16Int8 = {"strip16_int8", IsMxint8, ByteLayoutBytes, PackInt8};

}  // namespace mxort
