// What may follow a product before it is stored: an activation, and the product with another.
#ifndef MXORT_KERNELS_EPILOGUE_H_
#define MXORT_KERNELS_EPILOGUE_H_

#include <cstdint>

namespace mxort {

// The numbers are those of the operators' attribute `activation` (docs/format.md).
enum class Activation { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };
inline constexpr int64_t kActivations = 5;

// y[i] = activation(x[i]), times factor[i] where that is not null. y may be x.
using Activate = void (*)(Activation, const float* x, const float* factor, int64_t n, float* y);

}  // namespace mxort

#endif  // MXORT_KERNELS_EPILOGUE_H_
