// AMX-bf16 for many rows: weights of MXFP4 and MXINT8 decoded to bf16 tiles with their scale folded in, activations as
// one or three bf16 terms. Compiled with its own flags; no standard library here.
//
//   activation_format  level  terms  error of A
//   all MX formats     any    1      none: at most 4 significant bits
//   none               3, 4   1      1.7e-3 relative RMS (bf16)
//   none               1      3      6e-8: three times 8 bits
//
// One int8 term would be half the bytes of A, but tiles of int8 sum 64 k, two blocks with scales of their own.
//
// A strip pair's weights are decoded a chunk of K at a time into a buffer that stays in the first-level cache while all
// panels of rows pass over it; the sums wait in memory meanwhile. Larger chunks, whose tiles decoding has to fetch from
// the second-level cache first, were slower by a quarter. Tiles: 0..3 sums (2 x 2), 4, 5 rows of A, 6, 7 weights.
#include <immintrin.h>

#include "kernels/activation.h"
#include "kernels/cpu_kernels.h"
#include "kernels/float_kernel.h"

#if defined(MXORT_EMULATE)
#include "kernels/amx_emulated.h"
#else
#include "kernels/amx_tiles.h"
#endif

namespace mxort {
namespace {

constexpr int kTile = 16;               // rows of a tile, and 32-bit columns
constexpr int kPanelRows = 2 * kTile;   // two tiles of A
constexpr int kTileBytes = 64 * kTile;  // a full tile
constexpr int kChunkBlocks = 8;         // 256 K: 16 KB of decoded weights
constexpr int kStripsAtOnce = 4;        // 256 bytes of a row of Y
constexpr int kPanelsAtOnce = 8;        // 64 KB of sums

#if defined(MXORT_EMULATE)
bool HasAmx(const CpuFeatures& cpu) { return cpu.avx512; }
#else
bool HasAmx(const CpuFeatures& cpu) { return cpu.avx512 && cpu.amx_bf16; }
#endif

int Terms(const MatMulSpec& spec) {
  return spec.activation_format == ActivationFormat::kNone && spec.accuracy_level == AccuracyLevel::kFp32 ? 3 : 1;
}

// A panel is [blocks][terms][2 tiles][16 rows][32 k] bf16: whole tiles, whatever the number of rows. The rows that do
// not exist are never written; their sums are never stored.
int MaxPanelRows(const MatMulSpec&) { return kPanelRows; }
size_t PanelBytes(const MatMulSpec& spec, int) {
  return static_cast<size_t>((spec.K + kBlockSize - 1) / kBlockSize * Terms(spec) * 2 * kTileBytes);
}

// The tile unit treats subnormals as zero, so rows and weights keep well away from them: 2^-60 each, hence 2^-120 at
// the least for a product of two block maxima.
constexpr int kPlainExponent = 60;
MXORT_INLINE bool TileActivation(unsigned absmax) {
  constexpr unsigned kSmallest = static_cast<unsigned>(kScaleBias - kPlainExponent) << kFloatMantissaBits;
  return absmax == 0 || (absmax >= kSmallest && PlainActivation(absmax));
}

// 16 floats rounded to bf16, to nearest even, in the upper half of each lane. None is NaN or near overflow.
MXORT_INLINE __m512i RoundToUpperHalf(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
  return _mm512_andnot_si512(_mm512_set1_epi32(0xFFFF), rounded);
}

// One block in bf16 terms, `stride` bytes apart.
MXORT_INLINE void StoreTerms(__m512 low, __m512 high, int terms, int64_t stride, uint8_t* out) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i upper = _mm512_load_si512(kUpper);
  for (int t = 0; t < terms; ++t, out += stride) {
    const __m512i x = RoundToUpperHalf(low), y = RoundToUpperHalf(high);
    _mm512_store_si512(out, _mm512_permutex2var_epi16(x, upper, y));
    low = _mm512_sub_ps(low, _mm512_castsi512_ps(x));  // exact: the rest has fewer bits than the float had
    high = _mm512_sub_ps(high, _mm512_castsi512_ps(y));
  }
}

bool Prepare(const MatMulSpec& spec, DataType type, const void* a, int row, int, float* scratch, uint8_t* panel) {
  const int64_t blocks = (spec.K + kBlockSize - 1) / kBlockSize;
  const int terms = Terms(spec);
  const float* values = scratch;
  if (type == DataType::kFloat && spec.rotation == 1 && spec.K % kBlockSize == 0 &&
      spec.activation_format == ActivationFormat::kNone) {
    values = static_cast<const float*>(a);
  } else {
    if (!WidenAndRotate(spec, type, a, blocks, scratch)) return false;
    FakeQuantizeRow(spec.activation_format, scratch, blocks);
  }
  uint8_t* out = panel + row * kBlockSize * 2;
  for (int64_t b = 0; b < blocks; ++b, values += kBlockSize, out += terms * 2 * kTileBytes) {
    const __m512 low = _mm512_loadu_ps(values), high = _mm512_loadu_ps(values + 16);
    const __m512i magnitudes = _mm512_set1_epi32(static_cast<int>(kFloatMagnitude));
    const unsigned absmax =
        _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(low), magnitudes),
                                                 _mm512_and_si512(_mm512_castps_si512(high), magnitudes)));
    if (!TileActivation(absmax)) return false;  // whatever the panel holds, nobody reads the row's sums
    StoreTerms(low, high, terms, 2 * kTileBytes, out);
  }
  return true;
}

// How weights lie, and how one block of a strip becomes a weight tile: row p holds k 2p and 2p + 1 of each column.
//
// Nibbles: words are in that order. A word's low four bits choose from the table (vpermw ignores all but the low five,
// and the table repeats); subtracting scales: the table's exponents are 126 too high, so that a scale is a subtraction
// that saturates at zero for code 0. Signs ride along, because only code 0 can saturate:
//   value      0  .5     1      1.5    2      3      4      6
//   exponent   0  252    253    253    254    254    255    255     (value's own + 127 + 126)
//   minus 253 - scale = value's exponent + scale, as it must be
struct Nibbles {
  static constexpr int kCodeBytes = kBlockCodeBytes;
  MXORT_INLINE void Decode(const uint8_t* codes, const uint8_t* scales, uint8_t* tile) {
    alignas(64) static constexpr uint16_t kTable[32] = {0x0000, 0x7E00, 0x7E80, 0x7EC0, 0x7F00, 0x7F40, 0x7F80, 0x7FC0,
                                                        0x0000, 0xFE00, 0xFE80, 0xFEC0, 0xFF00, 0xFF40, 0xFF80, 0xFFC0,
                                                        0x0000, 0x7E00, 0x7E80, 0x7EC0, 0x7F00, 0x7F40, 0x7F80, 0x7FC0,
                                                        0x0000, 0xFE00, 0xFE80, 0xFEC0, 0xFF00, 0xFF40, 0xFF80, 0xFFC0};
    const __m512i table = _mm512_load_si512(kTable);
    const __m512i scale = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
    __m512i minus = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(2 * kScaleBias - 1), scale), 7);
    minus = _mm512_or_si512(minus, _mm512_slli_epi32(minus, 16));
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) {
      __m512i words = _mm512_loadu_si512(codes + v * kVectorBytes);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const __m512i weights = _mm512_permutexvar_epi16(words, table);
        _mm512_store_si512(tile + (4 * v + j) * 64, _mm512_subs_epu16(weights, minus));
        words = _mm512_srli_epi16(words, 4);
      }
    }
  }
};

// Bytes: of a lane's four, two by two, the floats' upper halves. An integer of 8 bits times a power of two is exact.
struct Bytes {
  static constexpr int kCodeBytes = kInt8BlockCodeBytes;
  MXORT_INLINE __m512i Float(__m512i bytes, int shift, __m512 scale) {
    const __m512i integers = _mm512_srai_epi32(_mm512_slli_epi32(bytes, static_cast<unsigned>(24 - shift)), 24);
    return _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(integers), scale));
  }
  MXORT_INLINE void Decode(const uint8_t* codes, const uint8_t* scales, uint8_t* tile) {
    const __m512i exponents =
        _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales))),
                          static_cast<unsigned>(kFloatMantissaBits));
    const __m512 scale = _mm512_mul_ps(_mm512_castsi512_ps(exponents), _mm512_set1_ps(ByteUnit<INT8>()));
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(kInt8Offset));
#pragma GCC unroll 8
    for (int v = 0; v < 2 * kBlockVectors; ++v) {
      const __m512i bytes = _mm512_xor_si512(_mm512_loadu_si512(codes + v * kVectorBytes), offset);
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {  // k 8i + 2h + 4j and the next, of vector 2i + h
        const __m512i even = Float(bytes, 8 * j, scale), odd = Float(bytes, 8 * j + 16, scale);
        _mm512_store_si512(tile + (v / 2 * 4 + v % 2 + 2 * j) * 64, _mm512_or_si512(_mm512_srli_epi32(even, 16), odd));
      }
    }
  }
};

// Two strips of the weights, decoded side by side: two tiles a block. The second strip may be missing; its tiles are
// then what the buffer holds, finite numbers, and its sums are never stored.
template <class W>
struct StripPair {
  const uint8_t* first;
  const uint8_t* second;  // null: none
  int64_t blocks;
  MXORT_MEMBER void Decode(int64_t block, uint8_t* tiles) const {
    const int64_t group = block / kGroupBlocks * kGroupBlocks, left = blocks - group;
    const int64_t codes = group * (W::kCodeBytes + kStripColumns) + (block - group) * W::kCodeBytes;
    const int64_t scales = group * (W::kCodeBytes + kStripColumns) +
                           (left < kGroupBlocks ? left : kGroupBlocks) * W::kCodeBytes +
                           (block - group) * kStripColumns;
    W::Decode(first + codes, first + scales, tiles);
    Prefetch<W::kCodeBytes>(first + codes);
    if (second) {
      W::Decode(second + codes, second + scales, tiles + kTileBytes);
      Prefetch<W::kCodeBytes>(second + codes);
    }
  }
};

// One panel over one chunk of K, onto `sums`, [2 row tiles][2 strips][16][16] float, or from zero.
template <int kRowTiles>
MXORT_INLINE void MultiplyChunk(AmxTiles& tiles, const uint8_t* a, const uint8_t* weights, int64_t count, int terms,
                                bool from_zero, float* sums) {
  constexpr bool kBoth = kRowTiles == 2;
  if (from_zero) {
    tiles.template Zero<0>();
    tiles.template Zero<1>();
    if constexpr (kBoth) tiles.template Zero<2>();
    if constexpr (kBoth) tiles.template Zero<3>();
  } else {
    tiles.template Load<0>(sums);
    tiles.template Load<1>(sums + 256);
    if constexpr (kBoth) tiles.template Load<2>(sums + 512);
    if constexpr (kBoth) tiles.template Load<3>(sums + 768);
  }
  for (int64_t b = 0; b < count; ++b, weights += 2 * kTileBytes) {
    tiles.template Load<6>(weights);
    tiles.template Load<7>(weights + kTileBytes);
    for (int t = 0; t < terms; ++t, a += 2 * kTileBytes) {
      tiles.template Load<4>(a);
      if constexpr (kBoth) tiles.template Load<5>(a + kTileBytes);
      tiles.template Multiply<0, 4, 6>();
      tiles.template Multiply<1, 4, 7>();
      if constexpr (kBoth) tiles.template Multiply<2, 5, 6>();
      if constexpr (kBoth) tiles.template Multiply<3, 5, 7>();
    }
  }
  tiles.template Store<0>(sums);
  tiles.template Store<1>(sums + 256);
  if constexpr (kBoth) tiles.template Store<2>(sums + 512);
  if constexpr (kBoth) tiles.template Store<3>(sums + 768);
}

// Panels (at most kPanelsAtOnce) by strips (at most kStripsAtOnce).
template <class W>
MXORT_INLINE void ComputeBlock(AmxTiles& tiles, const MatMulArgs& args, Range panels, Range strips) {
  alignas(64) uint8_t weights[kChunkBlocks * 2 * kTileBytes];
  alignas(64) float sums[kPanelsAtOnce][kStripsAtOnce / 2][4 * kTile * kTile];
  const int terms = Terms(*args.spec);
  const int64_t strip_bytes = StripBytes(args.blocks, W::kCodeBytes + kStripColumns);
  const auto rows_of = [&](int64_t panel) {
    const int64_t left = args.M - panel * args.panel_rows;
    return left < args.panel_rows ? left : args.panel_rows;
  };
  if (strips.end - strips.begin < kStripsAtOnce) __builtin_memset(weights, 0, sizeof weights);  // StripPair
  for (int64_t first = 0; first < args.blocks; first += kChunkBlocks) {
    const int64_t count = args.blocks - first < kChunkBlocks ? args.blocks - first : kChunkBlocks;
    for (int64_t strip = strips.begin; strip < strips.end; strip += 2) {
      const uint8_t* packed = args.packed + strip * strip_bytes;
      const StripPair<W> pair = {packed, strip + 1 < strips.end ? packed + strip_bytes : nullptr, args.blocks};
      for (int64_t b = 0; b < count; ++b) pair.Decode(first + b, weights + b * 2 * kTileBytes);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const uint8_t* a =
            args.prepared + static_cast<size_t>(panel) * args.panel_stride + first * terms * 2 * kTileBytes;
        float* total = sums[panel - panels.begin][(strip - strips.begin) / 2];
        if (rows_of(panel) > kTile) {
          MultiplyChunk<2>(tiles, a, weights, count, terms, first == 0, total);
        } else {
          MultiplyChunk<1>(tiles, a, weights, count, terms, first == 0, total);
        }
      }
    }
  }
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int64_t r = 0; r < rows_of(panel); ++r) {
      for (int64_t s = 0; s < strips.end - strips.begin; ++s) {
        const float* total = sums[panel - panels.begin][s / 2];
        StoreStrip(args, panel * args.panel_rows + r, strips.begin + s,
                   total + ((r / kTile * 2 + s % 2) * kTile + r % kTile) * kTile);
      }
    }
  }
}

template <class W>
void Compute(const MatMulArgs& args, Range panels, Range strips) {
  AmxTiles tiles;
  for (int64_t panel = panels.begin; panel < panels.end; panel += kPanelsAtOnce) {
    const int64_t end = panels.end - panel < kPanelsAtOnce ? panels.end : panel + kPanelsAtOnce;
    for (int64_t strip = strips.begin; strip < strips.end; strip += kStripsAtOnce) {
      const int64_t last = strips.end - strip < kStripsAtOnce ? strips.end : strip + kStripsAtOnce;
      ComputeBlock<W>(tiles, args, {panel, end}, {strip, last});
    }
  }
}

bool Supports(const MatMulSpec&) { return true; }
// Fewer cost a tile what 16 do: from here on that is less than what the integer kernels need.
constexpr int64_t kFewestRows = 12;

constexpr Kernel Row(const char* name, const WeightLayout* layout, void (*compute)(const MatMulArgs&, Range, Range)) {
  return {name,
          layout,
          HasAmx,
          Supports,
          MaxPanelRows,
          PanelBytes,
          Prepare,
          compute,
          kFewestRows,
          {kScaleBias - kPlainExponent, kScaleBias + kPlainExponent},
          {1024 * 1024, kStripsAtOnce, kTile, kPanelsAtOnce}};
}

}  // namespace

const Kernel kAmx = Row("avx512_amx", &kStrip16, Compute<Nibbles>);
const Kernel kAmxMxint8 = Row("avx512_amx_mxint8", &kStrip16Int8, Compute<Bytes>);

}  // namespace mxort
