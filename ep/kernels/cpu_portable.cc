// Any x86-64 (and any other CPU): the float kernel on the compiler's generic vectors.
#include "kernels/attention_kernel.h"
#include "kernels/cpu_kernels.h"
#include "kernels/epilogue_kernel.h"
#include "kernels/float_kernel.h"
#include "kernels/quantize_rows.h"
#include "kernels/solve_rows.h"
#include "kernels/vector_functions.h"

namespace mxort {
namespace {

// Four vectors of the size that every x86-64 has: the compiler lowers longer ones to scalars.
struct Generic {
  static constexpr int kParts = 4, kLanes = kStripColumns / kParts;
  typedef float Floats __attribute__((vector_size(4 * kLanes)));
  typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
  struct Vector {
    Floats part[kParts];
  };
  struct Codes {
    Ints part[kParts];
  };
  typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));
  using Pairs = Codes;
  static constexpr int kMaxRows = 4;
  static constexpr float kScaleShare = 0.5f;

  template <class Body>
  MXORT_INLINE Vector Map(const Body& body) {
    Vector out;
    for (int i = 0; i < kParts; ++i) out.part[i] = body(i);
    return out;
  }
  MXORT_INLINE Vector Fill(float x) {
    return Map([&](int) { return Floats{} + x; });
  }
  using Words = NoWords;
  static constexpr int kProductRows = 2, kProductVectors = 1;

  MXORT_INLINE Vector Zero() { return Fill(0.0f); }
  MXORT_INLINE Vector Load(const float* x) {
    Vector vector;
    __builtin_memcpy(&vector, x, sizeof vector);
    return vector;
  }
  MXORT_INLINE Floats MaxOf(Floats a, Floats b) { return a > b ? a : b; }
  MXORT_INLINE Vector Max(const Vector& a, const Vector& b) {
    return Map([&](int i) { return MaxOf(a.part[i], b.part[i]); });
  }
  MXORT_INLINE float Largest(const Vector& x) {
    const Floats four = MaxOf(MaxOf(x.part[0], x.part[2]), MaxOf(x.part[1], x.part[3]));
    const Floats two = MaxOf(four, __builtin_shufflevector(four, four, 2, 3, 0, 1));
    return two[0] > two[1] ? two[0] : two[1];
  }
  MXORT_INLINE float Sum(const Vector& x) {
    const Floats four = (x.part[0] + x.part[2]) + (x.part[1] + x.part[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
  }
  MXORT_INLINE void SumEach(const Vector* x, float* out) {
    for (int i = 0; i < 16; ++i) out[i] = Sum(x[i]);
  }
  MXORT_INLINE Vector Broadcast(const float* x) { return Fill(*x); }
  MXORT_INLINE Vector Add(const Vector& a, const Vector& b) {
    return Map([&](int i) { return a.part[i] + b.part[i]; });
  }
  MXORT_INLINE Vector MultiplyAdd(const Vector& a, const Vector& b, const Vector& c) {
    return Map([&](int i) { return a.part[i] * b.part[i] + c.part[i]; });
  }
  MXORT_INLINE Codes LoadCodes(const uint8_t* p) {
    Codes codes;
    __builtin_memcpy(&codes, p, sizeof codes);
    return codes;
  }
  // 2 * E2M1 by arithmetic, which SSE2 has, instead of a table, which it has not:
  //   magnitude m      0 1 2 3 4 5 6 7
  //   m                0 1 2 3 4 5 6 7
  //   + max(m - 4, 0)  0 1 2 3 4 6 8 10
  //   + 2 * (m == 7)   0 1 2 3 4 6 8 12
  MXORT_INLINE Vector Decode(const Codes& codes, int shift) {
    return Map([&](int i) {
      const Ints code = codes.part[i] >> shift, m = code & 7;
      const Ints twice = m + ((m > 4) & (m - 4)) + ((m == 7) & 2);
      const Ints sign = (code & 8) << 28;
      return reinterpret_cast<Floats>(reinterpret_cast<Ints>(__builtin_convertvector(twice, Floats)) | sign);
    });
  }
  MXORT_INLINE Vector DecodeByte(const Codes& codes, int shift) {
    return Map([&](int i) { return __builtin_convertvector(((codes.part[i] >> shift) & 255) - kInt8Offset, Floats); });
  }
  MXORT_INLINE Pairs LoadPairs(const uint8_t* p) {
    Pairs pairs;
    for (int i = 0; i < kParts; ++i) {
      Shorts part;
      __builtin_memcpy(&part, p + 2 * kLanes * i, sizeof part);
      pairs.part[i] = __builtin_convertvector(part, Ints);
    }
    return pairs;
  }
  MXORT_INLINE Pairs WidenBytes(const uint8_t* p) {
    Pairs pairs;
    for (int i = 0; i < 16; ++i) pairs.part[i / kLanes][i % kLanes] = p[i];
    return pairs;
  }
  MXORT_INLINE Codes WidenNibbles(const uint8_t* p) {
    Codes codes;
    for (int i = 0; i < 16; ++i) codes.part[i / kLanes][i % kLanes] = p[i / 2] >> (i % 2 * 4);
    return codes;
  }
  // The float16 of layout.h, without F16C: exponent and mantissa to their place in a float. A subnormal m is
  // 2^-14 * (1 + m / 8) - 2^-14.
  MXORT_INLINE Vector DecodePair(const Pairs& pairs, int e) {
    return Map([&](int i) {
      const Ints byte = pairs.part[i] >> (8 * e), m = byte & 0x7F;
      const Ints normal = (m << 20) + (112 << kFloatMantissaBits);
      const Floats above = reinterpret_cast<Floats>((m << 20) + (113 << kFloatMantissaBits));
      const Ints subnormal = reinterpret_cast<Ints>(above - 0x1p-14f);
      const Ints is_subnormal = m < 8;
      const Ints bits = (is_subnormal & subnormal) | (~is_subnormal & normal);
      return reinterpret_cast<Floats>(bits | ((byte & 0x80) << 24));
    });
  }
  // Half the scales, because Decode gives twice the values; exact down to 2^-128, a float subnormal.
  MXORT_INLINE Vector LoadScales(const uint8_t* p) {
    return Map([&](int i) {
      Floats scales{};
      for (int j = 0; j < kLanes; ++j) scales[j] = DecodeScale(p[i * kLanes + j]) * 0.5f;
      return scales;
    });
  }
  MXORT_INLINE void Store(float* out, const Vector& x) { __builtin_memcpy(out, &x, sizeof x); }
};

bool Always(const CpuFeatures&) { return true; }
bool Everything(const MatMulSpec&) { return true; }
int MaxPanelRows(const MatMulSpec&) { return Generic::kMaxRows; }
size_t PanelBytes(const MatMulSpec& spec, int rows) { return FloatPanelBytes(spec, rows); }
bool Prepare(const MatMulSpec& spec, DataType type, const void* a, int row, int rows, float* scratch, uint8_t* panel) {
  return PrepareFloatRow(spec, type, a, row, rows, scratch, panel);
}
void Compute(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Generic>>(args, panels, strips);
}
bool PrepareByte(const MatMulSpec& spec, DataType type, const void* a, int row, int rows, float* scratch,
                 uint8_t* panel) {
  return PrepareByteRow<Generic>(spec, type, a, row, rows, scratch, panel);
}
void ComputeByte(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Generic, ByteWeights<Generic>>>(args, panels, strips);
}
void ComputeMxint8(const MatMulArgs& args, Range panels, Range strips) {
  ComputeTiles<FloatTiles<Generic, Int8Weights<Generic>>>(args, panels, strips);
}

}  // namespace

const Kernel kPortable = {"portable", &kStrip16, Always, Everything, MaxPanelRows, PanelBytes, Prepare, Compute};
const Kernel kPortableByte = {"portable_byte", &kStrip16Byte, Always,      Everything,
                              MaxPanelRows,    PanelBytes,    PrepareByte, ComputeByte};
const Kernel kPortableMxint8 = {"portable_mxint8", &kStrip16Int8, Always,      Everything,
                                MaxPanelRows,      PanelBytes,    PrepareByte, ComputeMxint8};

const VectorFunctions kPortableFunctions = {
    [](const AttentionTile& tile) { AttendRange<Generic>(tile); },
    [](const ActivateArgs& args) { ActivateWith(args); },
    [](const QuantizeArgs& args, Range rows) { QuantizeRows(args, rows); },
    [](const RowSumsArgs& args, Range rows) { SumRowsOf(args, rows); },
    [](const PanelArgs& args, Range rows) { SolvePanel<GptqStep>(args, rows); },
    [](const PanelArgs& args, Range rows) { SolvePanel<DescendStep>(args, rows); },
};

}  // namespace mxort
