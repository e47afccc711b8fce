// AVX-512 VNNI + VBMI: block dot products as exact integers. Compiled with its own flags; no standard library here.
//
// Weights: 2 * E2M1 is an integer in [-12, 12]; + 12 makes it the unsigned operand of vpdpbusd. Activations: int8, in
// one or two terms (kTerms). With q the activation integers, sum((2w + 12) q) - 12 sum(q) = 2 sum(w q); the second term
// is known before the product and is what the accumulator starts from.
//
//   activation_format  level  terms  a =                                        error of a
//   mxfp4              any    1      q * scale / 2,  q = 2 * element            none
//   mxfp6_e2m3         any    1      q * scale / 8,  q = 8 * element            none
//   none               4      1      q * absmax / 127                           5e-3 relative RMS
//   none               3      2      (256 q1 + q2) * absmax / (127 * 256)       2e-5 relative RMS
#include <immintrin.h>

#include "kernels/activation.h"
#include "kernels/avx512.h"
#include "kernels/cpu_kernels.h"
#include "kernels/float_kernel.h"

namespace mxort {
namespace {

constexpr int kInt8Max = 127;
// The second term is in units of 1/256 of the first, a shift. Its largest value, 128, saturates to 127.
constexpr int kTermRatioBits = 8, kTermRatio = 1 << kTermRatioBits;

bool HasVnni(const CpuFeatures& cpu) { return cpu.avx512_vnni_vbmi; }

bool Supports(const MatMulSpec& spec) {
  return spec.activation_format == ActivationFormat::kMxfp4 || spec.activation_format == ActivationFormat::kMxfp6E2M3 ||
         (spec.activation_format == ActivationFormat::kNone && spec.accuracy_level != AccuracyLevel::kFp32);
}

bool TwoTerms(const MatMulSpec& spec) {
  return spec.activation_format == ActivationFormat::kNone && spec.accuracy_level == AccuracyLevel::kBf16;
}

// What a panel holds of one block of its kRows rows: [rows][terms][32] integers in the order of the packed weights,
// then [rows] scales (float) and [rows][terms] starts of the accumulators, -12 * sum(q) (int32).
MXORT_INLINE constexpr int PanelBlockBytes(int rows, int terms) { return rows * (terms * kBlockSize + 4 + terms * 4); }
MXORT_INLINE constexpr int ScaleOffset(int rows, int terms) { return rows * terms * kBlockSize; }
MXORT_INLINE constexpr int StartOffset(int rows, int terms) { return ScaleOffset(rows, terms) + rows * 4; }

// 24 accumulators (kTerms dot products and one sum a row) of the 32 registers.
constexpr int kMaxRows[] = {0, 12, 8};  // by terms
int MaxPanelRows(const MatMulSpec& spec) { return kMaxRows[TwoTerms(spec) ? 2 : 1]; }

size_t PanelBytes(const MatMulSpec& spec, int rows) {
  return static_cast<size_t>((spec.K + kBlockSize - 1) / kBlockSize * PanelBlockBytes(rows, TwoTerms(spec) ? 2 : 1));
}

// 32 integers (-128 to 127) as int8 in the order of a packed vector's nibbles, and -12 * their sum.
MXORT_INLINE void StoreTerm(__m512i low, __m512i high, int8_t* q, int32_t* start) {
  const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(low), order));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(high), order));
  *start = -12 * _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
}

// Format `none`: one or two int8 terms of the block's own range.
template <int kTerms>
MXORT_INLINE void PrepareInt8Block(const float* block, int8_t* q, int32_t* start, float* scale) {
  const __m512 low = _mm512_loadu_ps(block), high = _mm512_loadu_ps(block + 16);
  const float absmax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
  const float inverse = absmax > 0 ? static_cast<float>(kInt8Max) / absmax : 0.0f;
  const __m512 low_units = _mm512_mul_ps(low, _mm512_set1_ps(inverse));
  const __m512 high_units = _mm512_mul_ps(high, _mm512_set1_ps(inverse));
  const __m512i low_q = _mm512_cvtps_epi32(low_units), high_q = _mm512_cvtps_epi32(high_units);
  StoreTerm(low_q, high_q, q, start);
  *scale = absmax * (0.5f / kInt8Max);
  if constexpr (kTerms == 2) {
    const __m512 ratio = _mm512_set1_ps(kTermRatio);
    const __m512 low_rest = _mm512_mul_ps(_mm512_sub_ps(low_units, _mm512_cvtepi32_ps(low_q)), ratio);
    const __m512 high_rest = _mm512_mul_ps(_mm512_sub_ps(high_units, _mm512_cvtepi32_ps(high_q)), ratio);
    const __m512i largest = _mm512_set1_epi32(kInt8Max);
    StoreTerm(_mm512_min_epi32(_mm512_cvtps_epi32(low_rest), largest),
              _mm512_min_epi32(_mm512_cvtps_epi32(high_rest), largest), q + kBlockSize, start + 1);
    *scale *= 1.0f / kTermRatio;
  }
}

// An MX format whose elements are integers in units of 1/kUnits.
template <class F, int kUnits>
MXORT_INLINE void PrepareMxBlock(const float* block, int8_t* q, int32_t* start, float* scale) {
  alignas(64) float elements[kBlockSize];
  const uint8_t byte = QuantizeBlock<F>(block, elements);
  const __m512 units = _mm512_set1_ps(kUnits);
  StoreTerm(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(elements), units)),
            _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(elements + 16), units)), q, start);
  *scale = DecodeScale(byte) * (0.5f / kUnits);
}

bool Prepare(const MatMulSpec& spec, DataType type, const void* a, int row, int rows, float* scratch, uint8_t* panel) {
  const int64_t blocks = (spec.K + kBlockSize - 1) / kBlockSize;
  const int terms = TwoTerms(spec) ? 2 : 1;
  const bool plain = WidenAndRotate(spec, type, a, blocks, scratch);
  for (int64_t b = 0; b < blocks; ++b, panel += PanelBlockBytes(rows, terms), scratch += kBlockSize) {
    int8_t* q = reinterpret_cast<int8_t*>(panel) + row * terms * kBlockSize;
    float* scale = reinterpret_cast<float*>(panel + ScaleOffset(rows, terms)) + row;
    int32_t* start = reinterpret_cast<int32_t*>(panel + StartOffset(rows, terms)) + row * terms;
    if (spec.activation_format == ActivationFormat::kMxfp4) {
      PrepareMxBlock<E2M1, 2>(scratch, q, start, scale);
    } else if (spec.activation_format == ActivationFormat::kMxfp6E2M3) {
      PrepareMxBlock<E2M3, 8>(scratch, q, start, scale);
    } else if (terms == 2) {
      PrepareInt8Block<2>(scratch, q, start, scale);
    } else {
      PrepareInt8Block<1>(scratch, q, start, scale);
    }
  }
  return plain;
}

// 2 * E2M1 + 12 for the low nibble of each byte. vpermb looks at the low six bits of an index, and the table repeats
// every 16 entries, so the upper nibble of each byte does not matter.
MXORT_INLINE __m512i DecodeLowNibbles(__m512i codes) {
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  return _mm512_permutexvar_epi8(codes, table);
}

// Four bytes at p in every lane.
MXORT_INLINE __m512i Broadcast4(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return _mm512_set1_epi32(bits);
}

// sum += u8 products of `weights` with the four int8 at `quad`, in every lane. In assembly because GCC 12 to 14
// broadcast into a register first, which doubles the instructions of the inner loop.
MXORT_INLINE void Multiply4(__m512i& sum, __m512i weights, const uint8_t* quad) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*reinterpret_cast<const int32_t*>(quad)));
}

// A panel of kRows rows by one strip.
template <int kRows, int kTerms>
MXORT_INLINE void VnniTile(const MatMulArgs& args, int64_t panel, int64_t strip) {
  const uint8_t* p = args.packed + strip * StripBytes(args.blocks);
  const uint8_t* a = args.prepared + static_cast<size_t>(panel) * args.panel_stride;
  __m512 total[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r] = _mm512_setzero_ps();
  for (int64_t group = 0; group < args.blocks; group += kGroupBlocks) {
    const int64_t group_blocks = args.blocks - group < kGroupBlocks ? args.blocks - group : kGroupBlocks;
    const uint8_t* weight_scales = p + group_blocks * kBlockCodeBytes;
    for (int64_t b = 0; b < group_blocks; ++b) {
      __m512i dot[kRows * kTerms];
#pragma GCC unroll 16
      for (int i = 0; i < kRows * kTerms; ++i) dot[i] = Broadcast4(a + StartOffset(kRows, kTerms) + 4 * i);
#pragma GCC unroll 4
      for (int v = 0; v < kBlockVectors; ++v) {
        const __m512i codes = _mm512_loadu_si512(p + v * kVectorBytes);
        const __m512i low = DecodeLowNibbles(codes), high = DecodeLowNibbles(_mm512_srli_epi32(codes, 4));
#pragma GCC unroll 16
        for (int i = 0; i < kRows * kTerms; ++i) {
          const uint8_t* quads = a + i * kBlockSize + v * kVectorElements;
          Multiply4(dot[i], low, quads);
          Multiply4(dot[i], high, quads + 4);
        }
      }
      const __m512 weight_scale = LoadNormalScales16(weight_scales);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        __m512i exact = dot[r * kTerms];
        // 256 * 32 * 12 * 127 + 32 * 12 * 127 < 2^24, so the sum is exact as float too.
        if constexpr (kTerms == 2)
          exact = _mm512_add_epi32(_mm512_slli_epi32(exact, kTermRatioBits), dot[r * kTerms + 1]);
        const __m512 sum = _mm512_cvtepi32_ps(exact);
        // The activation's scale first: in a plain row that product is finite whatever the weight's scale is.
        const __m512 scale = _mm512_castsi512_ps(Broadcast4(a + ScaleOffset(kRows, kTerms) + 4 * r));
        total[r] = _mm512_fmadd_ps(_mm512_mul_ps(sum, scale), weight_scale, total[r]);
      }
      p += kBlockCodeBytes;
      weight_scales += kStripColumns;
      a += PanelBlockBytes(kRows, kTerms);
    }
    p += group_blocks * kStripColumns;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    alignas(64) float out[kStripColumns];
    _mm512_store_ps(out, total[r]);
    StoreStrip(args, panel * args.panel_rows + r, strip, out);
  }
}

template <int kTerms>
struct VnniTiles {
  static constexpr int kMaxRows = ::mxort::kMaxRows[kTerms];
  template <int kRows>
  static void Run(const MatMulArgs& args, int64_t panel, int64_t strip) {
    VnniTile<kRows, kTerms>(args, panel, strip);
  }
};

void Compute(const MatMulArgs& args, Range panels, Range strips) {
  if (TwoTerms(*args.spec)) {
    ComputeTiles<VnniTiles<2>>(args, panels, strips);
  } else {
    ComputeTiles<VnniTiles<1>>(args, panels, strips);
  }
}

}  // namespace

const Kernel kAvx512Vnni = {"avx512_vnni", &kStrip16, HasVnni, Supports, MaxPanelRows,
                            PanelBytes,    Prepare,   Compute, 1,        kNormalScales};

}  // namespace mxort
