// The vocabulary of the CPU kernels: what is to be computed, how weights are laid out, and what a kernel is.
// Knows neither ONNX Runtime nor HIP.
#ifndef MXORT_KERNELS_KERNEL_H_
#define MXORT_KERNELS_KERNEL_H_

#include <cstddef>
#include <cstdint>

#include "mx_formats.h"

namespace mxort {

enum class DataType { kFloat, kFloat16, kBFloat16 };
enum class ActivationFormat { kNone, kMxfp8E4M3, kMxfp6E2M3, kMxfp6E3M2, kMxfp4 };
enum class WeightFormat { kMxfp4, kMxfp6E2M3, kMxfp6E3M2, kMxfp8E4M3, kMxint8 };
enum class AccuracyLevel { kFp32 = 1, kBf16 = 3, kInt8 = 4 };

inline constexpr int kMaxRotation = 128;

// body(E) with the element type of `format`: one branch, and then code of its own for each format.
template <class Body>
MXORT_INLINE auto WithElement(ActivationFormat format, const Body& body) {
  switch (format) {
    case ActivationFormat::kMxfp8E4M3:
      return body(E4M3{});
    case ActivationFormat::kMxfp6E2M3:
      return body(E2M3{});
    case ActivationFormat::kMxfp6E3M2:
      return body(E3M2{});
    case ActivationFormat::kNone:  // has none: asked for by nobody
    case ActivationFormat::kMxfp4:
      break;
  }
  return body(E2M1{});
}

template <class Body>
MXORT_INLINE auto WithElement(WeightFormat format, const Body& body) {
  switch (format) {
    case WeightFormat::kMxfp6E2M3:
      return body(E2M3{});
    case WeightFormat::kMxfp6E3M2:
      return body(E3M2{});
    case WeightFormat::kMxfp8E4M3:
      return body(E4M3{});
    case WeightFormat::kMxint8:
      return body(INT8{});
    case WeightFormat::kMxfp4:
      break;
  }
  return body(E2M1{});
}

// Bytes of a packed block of weights.
MXORT_INLINE int64_t BlockBytes(WeightFormat format) {
  return WithElement(format, [](auto element) { return PackedBytes<decltype(element)>(); });
}

// The constant part of a MatMul: its attributes, and the format that its operator stands for.
struct MatMulSpec {
  int64_t K = 0;
  int64_t N = 0;
  int rotation = 1;
  ActivationFormat activation_format = ActivationFormat::kNone;
  AccuracyLevel accuracy_level = AccuracyLevel::kBf16;
  WeightFormat weight_format = WeightFormat::kMxfp4;
};

int64_t BlocksOf(int64_t k);  // ceil(k / block size)

// Weights as the operator receives them: codes [N, blocks * BlockBytes], scales [N, blocks].
struct Weights {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
};

// How a kernel family wants the weights: strips of kStripColumns output columns (layout.cc has the picture).
struct WeightLayout {
  const char* name;
  bool (*holds)(WeightFormat);
  size_t (*bytes)(const MatMulSpec&);
  // Packs strips [begin, end); different strips may be packed by different threads.
  void (*pack)(const MatMulSpec&, const Weights&, int64_t begin, int64_t end, uint8_t* packed);
};

// Everything a kernel needs to compute a piece of Y. Rows of A are grouped in panels of `panel_rows` (the last panel
// may have fewer), each as the kernel's own `prepare` left it: interleaved by K block, so that a tile reads one stream.
struct MatMulArgs {
  const MatMulSpec* spec;
  int64_t blocks;  // BlocksOf(spec->K)
  int64_t M;
  int panel_rows;
  const uint8_t* prepared;    // panels, panel_stride bytes apart
  size_t panel_stride;        // bytes, a multiple of 64
  const uint8_t* packed;      // weights in the kernel's layout
  const float* column_scale;  // [N]
  const float* bias;          // [N]
  // Where the element of row m and column n goes: y[(m - y_row) * y_stride + n - y_column].
  DataType type;
  void* y;
  int64_t y_stride, y_row, y_column;
};

struct Range {
  int64_t begin;
  int64_t end;
};

// E8M0 bytes from lowest to highest.
struct ScaleRange {
  int lowest;
  int highest;
  bool Holds(const ScaleRange& other) const { return lowest <= other.lowest && other.highest <= highest; }
};

// How a product is cut for a kernel, so that what is read again and again stays in a core's caches. As it stands: for
// kernels that keep their sums in registers.
struct Blocking {
  int64_t prepared_bytes = 256 * 1024;  // of the panels of a task: they stay in the second-level cache
  int64_t strips = 1;                   // tasks are of multiples of so many
  int64_t rows = 1;                     // panels are of multiples of so many
  int64_t panels = 1;                   // that are computed before an epilogue: weights are decoded once for them
};

// One row of the kernel table.
struct Kernel {
  const char* name;
  const WeightLayout* layout;
  bool (*cpu_has)(const struct CpuFeatures&);
  bool (*supports)(const MatMulSpec&);
  // The most rows a panel may have: what fits the registers.
  int (*max_panel_rows)(const MatMulSpec&);
  // Bytes of a panel of `rows` rows.
  size_t (*panel_bytes)(const MatMulSpec&, int rows);
  // Widens, rotates and quantises row `row` of a panel of `rows`. `scratch` is float [blocks * 32]. False: the row
  // holds values that this kernel cannot compute within its accuracy (PlainActivation), and the caller computes that
  // row with the reference; what the panel holds for it is then unspecified but finite.
  bool (*prepare)(const MatMulSpec&, DataType, const void* a_row, int row, int rows, float* scratch, uint8_t* panel);
  // Computes Y for the panels and strips given.
  void (*compute)(const MatMulArgs&, Range panels, Range strips);
  // Fewer rows than this are left to the next kernel of the table.
  int64_t min_rows = 1;
  // The scales it can take; weights with another one are left to the next kernel.
  ScaleRange scales = {0, kScaleNaN};
  Blocking blocking = {};
};

inline constexpr int kStripColumns = 16;

// Fast kernels take rows of which every block is zero or has its largest magnitude in [2^-110, 2^100). Above, a block's
// dot product could overflow float before the weight's scale makes it small again (32 * 12 * 2^100 < 2^109 cannot);
// below, an int8 scale absmax / (127 * 256 * 2) would become subnormal and lose bits that a large weight scale would
// show.
MXORT_INLINE bool PlainActivation(unsigned absmax) {
  constexpr unsigned kSmallest = static_cast<unsigned>(kScaleBias - 110) << kFloatMantissaBits;
  constexpr unsigned kLargest = static_cast<unsigned>(kScaleBias + 100) << kFloatMantissaBits;
  return absmax == 0 || (absmax >= kSmallest && absmax < kLargest);
}

struct CpuFeatures {
  bool avx2_fma = false;          // AVX2, FMA, F16C
  bool avx512 = false;            // AVX-512 F, BW, DQ, VL
  bool avx512_vnni = false;       // avx512 and VNNI
  bool avx512_vnni_vbmi = false;  // avx512_vnni and VBMI
  bool avx_vnni = false;          // avx2_fma and AVX-VNNI
  bool amx_bf16 = false;          // AMX tiles and bf16, and the kernel lets this process use them
};
CpuFeatures DetectCpu();

}  // namespace mxort

#endif  // MXORT_KERNELS_KERNEL_H_
