// The epilogues, compiled for each instruction set (vectorised by the compiler: hence loops of a constant length).
#ifndef MXORT_KERNELS_EPILOGUE_KERNEL_H_
#define MXORT_KERNELS_EPILOGUE_KERNEL_H_

#include "kernels/epilogue.h"
#include "kernels/vector_math.h"

namespace mxort {

struct None {
  MXORT_INLINE float Of(float x) { return x; }
};
struct Relu {
  MXORT_INLINE float Of(float x) { return x < 0 ? 0 : x; }  // NaN stays NaN
};
// x (1 + erf(x / sqrt 2)) / 2, absolute error below 1.5e-7 |x|.
struct Gelu {
  MXORT_INLINE float Of(float x) {
    const float half = 0.5f * ErfComplement(BitsFloat(FloatBits(x) & kFloatMagnitude) * 0.70710678f);
    return x * (x < 0 ? half : 1.0f - half);
  }
};
// x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x times the sigmoid of 2 u.
struct GeluTanh {
  MXORT_INLINE float Of(float x) { return x * Sigmoid(x * Fma(0.07135482f, x * x, 1.59576912f)); }
};
struct Silu {
  MXORT_INLINE float Of(float x) { return x * Sigmoid(x); }
};

template <class F, int kCount>
MXORT_INLINE void ActivateBlock(const float* x, const float* factor, float* y) {
  float block[kCount];
  for (int i = 0; i < kCount; ++i) block[i] = F::Of(x[i]);
  if (factor) {
    for (int i = 0; i < kCount; ++i) block[i] *= factor[i];
  }
  __builtin_memcpy(y, block, sizeof block);
}

template <class F>
MXORT_INLINE void ActivateAs(const float* x, const float* factor, int64_t n, float* y) {
  constexpr int kStep = 64;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) ActivateBlock<F, kStep>(x + i, factor ? factor + i : nullptr, y + i);
  for (; i < n; ++i) ActivateBlock<F, 1>(x + i, factor ? factor + i : nullptr, y + i);
}

MXORT_INLINE void ActivateWith(Activation activation, const float* x, const float* factor, int64_t n, float* y) {
  switch (activation) {
    case Activation::kNone:
      return ActivateAs<None>(x, factor, n, y);
    case Activation::kRelu:
      return ActivateAs<Relu>(x, factor, n, y);
    case Activation::kGelu:
      return ActivateAs<Gelu>(x, factor, n, y);
    case Activation::kGeluTanh:
      return ActivateAs<GeluTanh>(x, factor, n, y);
    case Activation::kSilu:
      return ActivateAs<Silu>(x, factor, n, y);
  }
}

}  // namespace mxort

#endif  // MXORT_KERNELS_EPILOGUE_KERNEL_H_
