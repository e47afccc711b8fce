// AMX-bf16 for many rows: weights decoded to bf16 tiles with their scale folded in, activations as one or three bf16
// terms. Compiled with its own flags; no standard library here.
//
//   activation_format  level  terms  error of A
//   mxfp8, mxfp6_e3m2  any    1      none: at most 4 significant bits
//   none               3      1      1.7e-3 relative RMS (bf16)
//   none               1      3      6e-8: three times 8 bits
//
// A strip pair's weights are decoded a chunk of K at a time into a buffer that stays in the first-level cache while all
// panels of rows pass over it; the sums wait in memory meanwhile. Tiles: 0..3 sums (2 x 2), 4, 5 rows of A, 6, 7
// weights.
#include <immintrin.h>

#include "kernels/activation.h"
#include "kernels/cpu_kernels.h"
#include "kernels/float_kernel.h"
#include "kernels/int8_kernel.h"

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
constexpr int kChunkBlocks = 16;        // 512 K: 32 KB of decoded weights
constexpr int kPanelsAtOnce = 16;       // 64 KB of sums

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
  return absmax == 0 || absmax >= kSmallest;
}

bool Prepare(const MatMulSpec& spec, DataType type, const void* a, int row, int, float* scratch, uint8_t* panel) {
  const int64_t blocks = (spec.K + kBlockSize - 1) / kBlockSize;
  const int terms = Terms(spec);
  bool plain = WidenAndRotate(spec, type, a, blocks, scratch);
  FakeQuantizeRow(spec.activation_format, scratch, blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    float* rest = scratch + b * kBlockSize;
    plain &= TileActivation(BlockAbsmax(rest));
    for (int t = 0; t < terms; ++t) {
      uint16_t* out = reinterpret_cast<uint16_t*>(panel + (b * terms + t) * 2 * kTileBytes) + row * kBlockSize;
      for (int i = 0; i < kBlockSize; ++i) {
        out[i] = FloatToBFloat16(rest[i]);
        rest[i] -= BFloat16ToFloat(out[i]);  // exact: the rest has fewer bits than the float had
      }
    }
  }
  return plain;
}

// One block of a strip as a weight tile: row p holds k 2p and 2p + 1 of each column, which is the order of the packed
// words. A word's low four bits choose from the table (vpermw ignores all but the low five, and the table repeats);
// subtracting scales: the table's exponents are 126 too high, so that a scale is a subtraction that saturates at zero
// for code 0. Signs ride along, because only code 0 can saturate:
//   value      0  .5     1      1.5    2      3      4      6
//   exponent   0  252    253    253    254    254    255    255     (value's own + 127 + 126)
//   minus 253 - scale = value's exponent + scale, as it must be
MXORT_INLINE void DecodeTile(const uint8_t* codes, const uint8_t* scales, uint8_t* tile) {
  alignas(64) static constexpr uint16_t kTable[32] = {0x0000, 0x7E00, 0x7E80, 0x7EC0, 0x7F00, 0x7F40, 0x7F80, 0x7FC0,
                                                      0x0000, 0xFE00, 0xFE80, 0xFEC0, 0xFF00, 0xFF40, 0xFF80, 0xFFC0,
                                                      0x0000, 0x7E00, 0x7E80, 0x7EC0, 0x7F00, 0x7F40, 0x7F80, 0x7FC0,
                                                      0x0000, 0xFE00, 0xFE80, 0xFEC0, 0xFF00, 0xFF40, 0xFF80, 0xFFC0};
  const __m512i table = _mm512_load_si512(kTable);
  const __m512i scale = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  __m512i minus = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(2 * kScaleBias - 1), scale), 7);
  minus = _mm512_or_si512(minus, _mm512_slli_epi32(minus, 16));
  for (int v = 0; v < kBlockVectors; ++v) {
    __m512i words = _mm512_loadu_si512(codes + v * kVectorBytes);
    for (int j = 0; j < 4; ++j) {
      const __m512i weights = _mm512_permutexvar_epi16(words, table);
      _mm512_store_si512(tile + (4 * v + j) * 64, _mm512_subs_epu16(weights, minus));
      words = _mm512_srli_epi16(words, 4);
    }
  }
}

// Blocks [first, first + count) of a strip, `first` at the start of a group; `tiles` has two tiles for each block.
MXORT_INLINE void DecodeChunk(const MatMulArgs& args, int64_t strip, int64_t first, int64_t count, uint8_t* tiles) {
  const uint8_t* p = args.packed + strip * StripBytes(args.blocks) + first * kBlockBytes;
  for (int64_t group = 0; group < count; group += kGroupBlocks) {
    const int64_t blocks = count - group < kGroupBlocks ? count - group : kGroupBlocks;
    for (int64_t b = 0; b < blocks; ++b) {
      DecodeTile(p + b * kBlockCodeBytes, p + blocks * kBlockCodeBytes + b * kStripColumns,
                 tiles + (group + b) * 2 * kTileBytes);
    }
    p += blocks * kBlockBytes;
  }
}

// One panel over one chunk of a strip pair. `sums` is [2 row tiles][2 strips][16][16] float.
template <class Tiles>
MXORT_INLINE void MultiplyChunk(Tiles& tiles, const uint8_t* a, const uint8_t* weights, int64_t count, int terms,
                                float* sums) {
  tiles.template Load<0>(sums);
  tiles.template Load<1>(sums + 256);
  tiles.template Load<2>(sums + 512);
  tiles.template Load<3>(sums + 768);
  for (int64_t b = 0; b < count; ++b, weights += 2 * kTileBytes) {
    tiles.template Load<6>(weights);
    tiles.template Load<7>(weights + kTileBytes);
    for (int t = 0; t < terms; ++t, a += 2 * kTileBytes) {
      tiles.template Load<4>(a);
      tiles.template Load<5>(a + kTileBytes);
      tiles.template Multiply<0, 4, 6>();
      tiles.template Multiply<1, 4, 7>();
      tiles.template Multiply<2, 5, 6>();
      tiles.template Multiply<3, 5, 7>();
    }
  }
  tiles.template Store<0>(sums);
  tiles.template Store<1>(sums + 256);
  tiles.template Store<2>(sums + 512);
  tiles.template Store<3>(sums + 768);
}

template <class Tiles>
MXORT_INLINE void ComputePair(Tiles& tiles, const MatMulArgs& args, Range panels, int64_t strip, int64_t strips) {
  alignas(64) uint8_t weights[kChunkBlocks * 2 * kTileBytes];
  alignas(64) float sums[kPanelsAtOnce * 4 * kTile * kTile];
  const int terms = Terms(*args.spec);
  __builtin_memset(sums, 0, static_cast<size_t>(panels.end - panels.begin) * 4 * kTile * kTile * sizeof(float));
  if (strips == 1) __builtin_memset(weights, 0, sizeof weights);  // the second strip's tiles
  for (int64_t first = 0; first < args.blocks; first += kChunkBlocks) {
    const int64_t count = args.blocks - first < kChunkBlocks ? args.blocks - first : kChunkBlocks;
    for (int64_t s = 0; s < strips; ++s) DecodeChunk(args, strip + s, first, count, weights + s * kTileBytes);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const uint8_t* a =
          args.prepared + static_cast<size_t>(panel) * args.panel_stride + first * terms * 2 * kTileBytes;
      MultiplyChunk(tiles, a, weights, count, terms, sums + (panel - panels.begin) * 4 * kTile * kTile);
    }
  }
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const float* total = sums + (panel - panels.begin) * 4 * kTile * kTile;
    const int64_t row = panel * args.panel_rows, left = args.M - row;
    const int64_t rows = left < args.panel_rows ? left : args.panel_rows;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = 0; s < strips; ++s) {
        StoreStrip(args, row + r, strip + s, total + ((r / kTile * 2 + s) * kTile + r % kTile) * kTile);
      }
    }
  }
}

void Compute(const MatMulArgs& args, Range panels, Range strips) {
  AmxTiles tiles;
  for (int64_t first = panels.begin; first < panels.end; first += kPanelsAtOnce) {
    const int64_t end = panels.end - first < kPanelsAtOnce ? panels.end : first + kPanelsAtOnce;
    for (int64_t strip = strips.begin; strip < strips.end; strip += 2) {
      ComputePair(tiles, args, {first, end}, strip, strips.end - strip < 2 ? 1 : 2);
    }
  }
}

// Where one term of int8 does, the VNNI kernel, which every CPU with AMX has, is faster for any M: 1.1 to 2.0 times
// from 16 to 512 rows on the Sapphire Rapids where this was measured. With two terms it is from 24 rows on that these
// tiles are.
bool Supports(const MatMulSpec& spec) { return !Int8Supports(spec) || Int8Terms(spec) != 1; }
constexpr int64_t kFewestRows = 24;

}  // namespace

const Kernel kAmx = {
    "avx512_amx", &kStrip16, HasAmx,  Supports,    MaxPanelRows,
    PanelBytes,   Prepare,   Compute, kFewestRows, {kScaleBias - kPlainExponent, kScaleBias + kPlainExponent}};

}  // namespace mxort
