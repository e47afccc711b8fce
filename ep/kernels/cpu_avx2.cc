// AVX2 + FMA: the float kernel on pairs of 8-lane registers. Compiled with -mavx2 -mfma -mf16c.
// No standard library here: its inline functions would be merged with those of other files by the linker
// (mx_formats.h).
#include <immintrin.h>

#include "kernels/attention_kernel.h"
#include "kernels/cpu_kernels.h"
#include "kernels/epilogue_kernel.h"
#include "kernels/float_kernel.h"
#include "kernels/quantize_rows.h"
#include "kernels/solve_rows.h"
#include "kernels/vector_functions.h"

namespace mxort {
namespace {

struct Avx2 {
  struct Vector {
    __m256 low, high;
  };
  struct Codes {
    __m256i low, high;
  };
  struct Pairs {
    __m128i low, high;
  };
  static constexpr int kMaxRows = 4;
  static constexpr float kScaleShare = 0.5f;

  using Words = NoWords;
  static constexpr int kProductRows = 4, kProductVectors = 1;  // 8 sums and a vector of 16 registers

  MXORT_INLINE Vector Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  MXORT_INLINE Vector Load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
  MXORT_INLINE Vector Max(Vector a, Vector b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  MXORT_INLINE float Largest(Vector x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  MXORT_INLINE float Sum(Vector x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  MXORT_INLINE void SumEach(const Vector* x, float* out) {
    for (int i = 0; i < 16; ++i) out[i] = Sum(x[i]);
  }
  MXORT_INLINE Vector Broadcast(const float* x) { return {_mm256_broadcast_ss(x), _mm256_broadcast_ss(x)}; }
  MXORT_INLINE Vector Add(Vector a, Vector b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  MXORT_INLINE Vector MultiplyAdd(Vector a, Vector b, Vector c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  MXORT_INLINE Codes LoadCodes(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  // Twice the value, as in cpu_portable.cc. vpermps looks at the low three bits of each index only, which are E2M1's
  // magnitude; the sign is bit 3.
  MXORT_INLINE __m256 DecodeHalf(__m256i codes, int shift) {
    const __m256 table = _mm256_setr_ps(0, 1, 2, 3, 4, 6, 8, 12);
    const __m256i index = _mm256_srli_epi32(codes, shift);
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(index, 28), _mm256_set1_epi32(INT32_MIN));
    return _mm256_or_ps(_mm256_permutevar8x32_ps(table, index), _mm256_castsi256_ps(sign));
  }
  MXORT_INLINE Vector Decode(Codes codes, int shift) {
    return {DecodeHalf(codes.low, shift), DecodeHalf(codes.high, shift)};
  }
  MXORT_INLINE __m256 DecodeByteHalf(__m256i codes, int shift) {
    const __m256i byte = _mm256_and_si256(_mm256_srli_epi32(codes, shift), _mm256_set1_epi32(255));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(byte, _mm256_set1_epi32(kInt8Offset)));
  }
  MXORT_INLINE Vector DecodeByte(Codes codes, int shift) {
    return {DecodeByteHalf(codes.low, shift), DecodeByteHalf(codes.high, shift)};
  }
  MXORT_INLINE Pairs LoadPairs(const uint8_t* p) {
    return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)),
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16))};
  }
  // As in cpu_avx512.cc.
  MXORT_INLINE Pairs WidenBytes(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), zero = _mm_setzero_si128();
    return {_mm_unpacklo_epi8(bytes, zero), _mm_unpackhi_epi8(bytes, zero)};
  }
  MXORT_INLINE Codes WidenNibbles(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i codes = _mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4));
    return {_mm256_cvtepu8_epi32(codes), _mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8))};
  }
  MXORT_INLINE __m256 DecodePairHalf(__m128i pairs, int e) {
    const __m128i top = e ? pairs : _mm_slli_epi16(pairs, 8);
    return _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(top, 1), _mm_set1_epi16(kByteFloat16)));
  }
  MXORT_INLINE Vector DecodePair(Pairs pairs, int e) {
    return {DecodePairHalf(pairs.low, e), DecodePairHalf(pairs.high, e)};
  }
  // Half the scales: exact down to 2^-128, a float subnormal.
  MXORT_INLINE __m256 LoadScalesHalf(const uint8_t* p) {
    const __m256i byte = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i bits = _mm256_max_epu32(_mm256_slli_epi32(byte, kFloatMantissaBits),
                                          _mm256_set1_epi32(static_cast<int>(kFloatTwoToMinus127)));
    const __m256i is_nan = _mm256_cmpeq_epi32(byte, _mm256_set1_epi32(kScaleNaN));
    const __m256i scale = _mm256_or_si256(bits, _mm256_and_si256(is_nan, _mm256_set1_epi32(kFloatNaN)));
    return _mm256_mul_ps(_mm256_castsi256_ps(scale), _mm256_set1_ps(0.5f));
  }
  MXORT_INLINE Vector LoadScales(const uint8_t* p) { return {LoadScalesHalf(p), LoadScalesHalf(p + 8)}; }
  MXORT_INLINE void Store(float* out, Vector x) {
    _mm256_storeu_ps(out, x.low);
    _mm256_storeu_ps(out + 8, x.high);
  }
};

bool HasAvx2(const CpuFeatures& cpu) { return cpu.avx2_fma; }
bool Everything(const MatMulSpec&) { return true; }
int MaxPanelRows(const MatMulSpec&) { return Avx2::kMaxRows; }
size_t PanelBytes(const MatMulSpec& spec, int rows) { return FloatPanelBytes(spec, rows); }
bool Prepare(const MatMulSpec& spec, DataType type, const void* a, int row, int rows, float* scratch, uint8_t* panel) {
  return PrepareFloatRow(spec, type, a, row, rows, scratch, panel);
}
void Compute(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Avx2>>(args, panels, strips);
}
bool PrepareByte(const MatMulSpec& spec, DataType type, const void* a, int row, int rows, float* scratch,
                 uint8_t* panel) {
  return PrepareByteRow<Avx2>(spec, type, a, row, rows, scratch, panel);
}
void ComputeByte(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Avx2, ByteWeights<Avx2>>>(args, panels, strips);
}
void ComputeMxint8(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Avx2, Int8Weights<Avx2>>>(args, panels, strips);
}

}  // namespace

const Kernel kAvx2 = {"avx2", &kStrip16, HasAvx2, Everything, MaxPanelRows, PanelBytes, Prepare, Compute};
const Kernel kAvx2Byte = {"avx2_byte",  &kStrip16Byte, HasAvx2,     Everything,
                          MaxPanelRows, PanelBytes,    PrepareByte, ComputeByte};
const Kernel kAvx2Mxint8 = {"avx2_mxint8", &kStrip16Int8, HasAvx2,     Everything,
                            MaxPanelRows,  PanelBytes,    PrepareByte, ComputeMxint8};

const VectorFunctions kAvx2Functions = {
    [](const AttentionTile& tile) { AttendRange<Avx2>(tile); },
    [](const ActivateArgs& args) { ActivateWith(args); },
    [](const QuantizeArgs& args, Range rows) { QuantizeRows(args, rows); },
    [](const RowSumsArgs& args, Range rows) { SumRowsOf(args, rows); },
    [](const PanelArgs& args, Range rows) { SolvePanel<GptqStep>(args, rows); },
    [](const PanelArgs& args, Range rows) { SolvePanel<DescendStep>(args, rows); },
};

}  // namespace mxort
