// What happens to a row of A before the product: widen to float, rotate, quantise (docs/format.md, "Numerics of A").
// Included by every kernel file, which compiles it for its own instruction set; see mx_formats.h for why it is static.
#ifndef MXORT_KERNELS_ACTIVATION_H_
#define MXORT_KERNELS_ACTIVATION_H_

#include "kernels/float16.h"
#include "kernels/kernel.h"
#include "mx_formats.h"

namespace mxort {

// One row widened to float [blocks * 32], the tail filled with zeros.
MXORT_INLINE void WidenRow(DataType type, const void* a, int64_t k, int64_t padded, float* out) {
  switch (type) {  // one loop a type, so that each vectorises
    case DataType::kFloat:
      __builtin_memcpy(out, a, static_cast<size_t>(k) * sizeof(float));
      break;
    case DataType::kFloat16:
      Float16ToFloats(static_cast<const uint16_t*>(a), k, out);
      break;
    case DataType::kBFloat16:
      for (int64_t i = 0; i < k; ++i) out[i] = BFloat16ToFloat(static_cast<const uint16_t*>(a)[i]);
      break;
  }
  for (int64_t i = k; i < padded; ++i) out[i] = 0.0f;
}

// One stage of butterflies of a stride below 4, inside vectors of 4: (x, y) -> (x + y, x - y) is the sum of the swapped
// vector and the vector with the sign of each y flipped, which rounds the same.
//   stride 1:  x0 x1 x2 x3  ->  x1 x0 x3 x2  +  x0 -x1  x2 -x3
//   stride 2:  x0 x1 x2 x3  ->  x2 x3 x0 x1  +  x0  x1 -x2 -x3
typedef float Float4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int Int4 __attribute__((vector_size(16)));
template <int kSize, int kStride>
MXORT_INLINE void RotateInVectors(float* block) {
  constexpr int kFlip = static_cast<int>(~kFloatMagnitude);
  constexpr Int4 kSign = kStride == 1 ? Int4{0, kFlip, 0, kFlip} : Int4{0, 0, kFlip, kFlip};
  for (int i = 0; i < kSize; i += 4) {
    Float4* vector = reinterpret_cast<Float4*>(block + i);
    const Float4 x = *vector;
    const Float4 swapped = kStride == 1 ? __builtin_shufflevector(x, x, 1, 0, 3, 2)  // GCC 12 and clang
                                        : __builtin_shufflevector(x, x, 2, 3, 0, 1);
    *vector = swapped + reinterpret_cast<Float4>(reinterpret_cast<Int4>(x) ^ kSign);
  }
}

// In place: blocks of kSize values times the normalised Sylvester Hadamard matrix. The order of the float operations is
// part of the operator: butterflies with strides 1, 2, 4, ..., then one multiplication.
template <int kSize>
MXORT_INLINE void RotateBlocks(float* row, int64_t padded, float normalizer) {
  for (float* block = row; block < row + padded; block += kSize) {
    RotateInVectors<kSize, 1>(block);
    RotateInVectors<kSize, 2>(block);
    for (int stride = 4; stride < kSize; stride *= 2) {
      for (int base = 0; base < kSize; base += 2 * stride) {
        for (int i = base; i < base + stride; i += 4) {
          Float4* low = reinterpret_cast<Float4*>(block + i);
          Float4* high = reinterpret_cast<Float4*>(block + i + stride);
          const Float4 x = *low, y = *high;
          *low = x + y;
          *high = x - y;
        }
      }
    }
    for (int i = 0; i < kSize; ++i) block[i] *= normalizer;
  }
}
MXORT_INLINE void RotateRow(int rotation, float* row, int64_t padded) {
  // float(1 / sqrt(rotation)): the literals are the correctly rounded floats.
  if (rotation == 32) RotateBlocks<32>(row, padded, 0.17677669529663687f);
  if (rotation == 64) RotateBlocks<64>(row, padded, 0.125f);
  if (rotation == 128) RotateBlocks<128>(row, padded, 0.08838834764831845f);
}

// Bit pattern of the largest magnitude of a block; a NaN compares above everything, so it shows as > infinity.
MXORT_INLINE unsigned BlockAbsmax(const float* block) {
  unsigned absmax = 0;
  for (int i = 0; i < kBlockSize; ++i) {
    const unsigned magnitude = FloatBits(block[i]) & kFloatMagnitude;
    absmax = magnitude > absmax ? magnitude : absmax;
  }
  return absmax;
}

// One block quantised with rule "even": what Q does. Fills `elements` (values before the scale; the quantised number is
// value * 2^(scale - 127)) and returns the scale byte. A block with a NaN or an infinity gets the NaN scale and zeros.
template <class F>
MXORT_INLINE uint8_t QuantizeBlock(const float* block, float* elements) {
  const unsigned absmax = BlockAbsmax(block);
  if (absmax >= kFloatExponent) {
    for (int i = 0; i < kBlockSize; ++i) elements[i] = 0.0f;
    return kScaleNaN;
  }
  const uint8_t scale = ScaleEven<F>(absmax);
  const float inverse = InverseScale(scale);
  for (int i = 0; i < kBlockSize; ++i) elements[i] = RoundToElement<F>(block[i] * inverse).value;
  return scale;
}

// Replaces a row by its quantised values as floats. They are exact: at most 4 significant bits, and exponents well
// within float's range in a row of plain activations.
template <class F>
MXORT_INLINE void FakeQuantizeRow(float* row, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b, row += kBlockSize) {
    const float scale = DecodeScale(QuantizeBlock<F>(row, row));
    for (int i = 0; i < kBlockSize; ++i) row[i] *= scale;
  }
}
MXORT_INLINE void FakeQuantizeRow(ActivationFormat format, float* row, int64_t blocks) {
  if (format == ActivationFormat::kNone) return;
  WithElement(format, [&](auto element) { FakeQuantizeRow<decltype(element)>(row, blocks); });
}

// Widen and rotate; false where a block is not plain (PlainActivation): the row is then all zeros.
MXORT_INLINE bool WidenAndRotate(const MatMulSpec& spec, DataType type, const void* a, int64_t blocks, float* row) {
  const int64_t padded = blocks * kBlockSize;
  WidenRow(type, a, spec.K, padded, row);
  RotateRow(spec.rotation, row, padded);
  bool plain = true;
  for (int64_t b = 0; b < blocks; ++b) plain &= PlainActivation(BlockAbsmax(row + b * kBlockSize));
  if (!plain) __builtin_memset(row, 0, static_cast<size_t>(padded) * sizeof(float));
  return plain;
}

}  // namespace mxort

#endif  // MXORT_KERNELS_ACTIVATION_H_
