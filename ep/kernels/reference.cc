// The operator in plain loops and double precision. Never optimised: every other kernel is tested against it, and it
// computes the rows that the fast kernels decline (PlainActivation).
#include <vector>

#include "kernels/activation.h"
#include "kernels/cpu_kernels.h"

namespace mxort {
namespace {

template <class F>
void QuantizeRow(const std::vector<float>& row, std::vector<double>& out) {
  for (size_t base = 0; base < row.size(); base += kBlockSize) {
    float elements[kBlockSize];
    const uint8_t scale = QuantizeBlock<F>(&row[base], elements);
    for (size_t i = 0; i < kBlockSize; ++i) {
      out[base + i] = static_cast<double>(elements[i]) * static_cast<double>(DecodeScale(scale));
    }
  }
}

// One row of A as the product sees it, in double.
std::vector<double> ActivationRow(const MatMulSpec& spec, DataType type, const void* a) {
  std::vector<float> row(static_cast<size_t>(BlocksOf(spec.K) * kBlockSize));
  const int64_t padded = static_cast<int64_t>(row.size());
  WidenRow(type, a, spec.K, padded, row.data());
  RotateRow(spec.rotation, row.data(), padded);
  std::vector<double> out(row.begin(), row.end());
  if (spec.activation_format != ActivationFormat::kNone) {
    WithElement(spec.activation_format, [&](auto element) { QuantizeRow<decltype(element)>(row, out); });
  }
  return out;
}

// A block of weights of format F before its scale.
template <class F>
void DecodeBlock(const uint8_t* packed, float* values) {
  uint8_t codes[kBlockSize];
  UnpackBlock<F>(packed, codes);
  for (int i = 0; i < kBlockSize; ++i) values[i] = DecodeElement<F>(codes[i]);
}

}  // namespace

void ReferenceMatMul(const MatMulSpec& spec, DataType type, const void* a, const Weights& weights,
                     const float* column_scale, const float* bias, Range rows, DataType y_type, void* y) {
  const int64_t blocks = BlocksOf(spec.K), block_bytes = BlockBytes(spec.weight_format);
  const char* a_bytes = static_cast<const char*>(a);
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    const std::vector<double> row =
        ActivationRow(spec, type, a_bytes + static_cast<size_t>(m * spec.K) * DataTypeBytes(type));
    for (int64_t n = 0; n < spec.N; ++n) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        const uint8_t* codes = weights.codes + (n * blocks + block) * block_bytes;
        const double scale = static_cast<double>(DecodeScale(weights.scales[n * blocks + block]));
        float values[kBlockSize];
        WithElement(spec.weight_format, [&](auto element) { DecodeBlock<decltype(element)>(codes, values); });
        for (int i = 0; i < kBlockSize; ++i) {
          sum += row[static_cast<size_t>(block * kBlockSize + i)] * (static_cast<double>(values[i]) * scale);
        }
      }
      const double result = sum * static_cast<double>(column_scale[n]) + static_cast<double>(bias[n]);
      StoreAs(y_type, y, (m - rows.begin) * spec.N + n, static_cast<float>(result));
    }
  }
}

}  // namespace mxort
