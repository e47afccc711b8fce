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

void Pack(const MatMulSpec& spec, const Weights& weights, int64_t begin, int64_t end, uint8_t* packed) {
  const int64_t blocks = BlocksOf(spec.K);
  for (int64_t strip = begin; strip < end; ++strip) {
    uint8_t* out = packed + strip * StripBytes(blocks);
    const int64_t first = strip * kStripColumns, columns = std::min<int64_t>(kStripColumns, spec.N - first);
    if (columns < kStripColumns || blocks * kBlockBytes < StripBytes(blocks)) {
      std::memset(out, 0, static_cast<size_t>(StripBytes(blocks)));
    }
    for (int64_t block = 0; block < blocks; ++block) {  // sixteen streams in, one out
      const int64_t group = block / kGroupBlocks * kGroupBlocks, in_group = block - group;
      uint8_t* base = out + group * kBlockBytes;
      uint8_t* scales = base + std::min<int64_t>(kGroupBlocks, blocks - group) * kBlockCodeBytes;
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t from = (first + column) * blocks + block;
        PackColumn(weights.codes + from * kPackedBlockBytes, weights.scales[from],
                   base + in_group * kBlockCodeBytes + 4 * column, scales + in_group * kStripColumns + column);
      }
    }
  }
}

}  // namespace

const WeightLayout kStrip16 = {"strip16", Bytes, Pack};

}  // namespace mxort
