// What may follow a product before it is stored: an activation, and the product with another.
#ifndef MXORT_KERNELS_EPILOGUE_H_
#define MXORT_KERNELS_EPILOGUE_H_

#include <cstdint>

namespace mxort {

// The numbers are those of the operators' attribute `activation` (docs/format.md).
enum class Activation { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };
inline constexpr int64_t kActivations = 5;

// A gate's product in full: f(min(y, limit)) * (clip(factor, -limit, limit) + beta), SiLU with alpha in its sigmoid.
// Without a factor alpha counts alone.
struct GateShape {
  float alpha = 1, beta = 0, limit = __builtin_inff();
};

// In place: y[r, i] = activation(y[r, i]), times factor[r, i] where that is not null.
struct ActivateArgs {
  Activation activation;
  int64_t rows, columns;
  float* y;
  int64_t y_stride;
  const float* factor;
  int64_t factor_stride;
  GateShape shape = {};
};
using Activate = void (*)(const ActivateArgs&);

}  // namespace mxort

#endif  // MXORT_KERNELS_EPILOGUE_H_
