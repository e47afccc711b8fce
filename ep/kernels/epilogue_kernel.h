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

// As the product it is, and with a shape: x sigmoid(alpha x) is SiLU of alpha x, divided by alpha. NaN stays NaN.
struct Plain {
  template <class F>
  MXORT_INLINE float Gate(const GateShape&, float x) {
    return F::Of(x);
  }
  MXORT_INLINE float Factor(const GateShape&, float x) { return x; }
};
struct Shaped {
  template <class F>
  MXORT_INLINE float Gate(const GateShape& shape, float x) {
    return F::Of((x > shape.limit ? shape.limit : x) * shape.alpha) / shape.alpha;
  }
  MXORT_INLINE float Factor(const GateShape& shape, float x) {
    const float least = x < -shape.limit ? -shape.limit : x;
    return (least > shape.limit ? shape.limit : least) + shape.beta;
  }
};

template <class F, class G, int kCount>
MXORT_INLINE void ActivateBlock(const GateShape& shape, float* y, const float* factor) {
  float block[kCount];
  for (int i = 0; i < kCount; ++i) block[i] = G::template Gate<F>(shape, y[i]);
  if (factor) {
    for (int i = 0; i < kCount; ++i) block[i] *= G::Factor(shape, factor[i]);
  }
  __builtin_memcpy(y, block, sizeof block);
}

// Columns from `first` on, kCount at a time; returns where that ends.
template <class F, class G, int kCount>
MXORT_INLINE int64_t ActivateBlocks(const ActivateArgs& args, int64_t row, int64_t first) {
  float* y = args.y + row * args.y_stride;
  const float* factor = args.factor ? args.factor + row * args.factor_stride : nullptr;
  for (; first + kCount <= args.columns; first += kCount) {
    ActivateBlock<F, G, kCount>(args.shape, y + first, factor ? factor + first : nullptr);
  }
  return first;
}

template <class F, class G>
MXORT_INLINE void ActivateRows(const ActivateArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t wide = ActivateBlocks<F, G, 64>(args, row, 0);
    ActivateBlocks<F, G, 1>(args, row, ActivateBlocks<F, G, 16>(args, row, wide));
  }
}
template <class F>
MXORT_INLINE void ActivateAs(const ActivateArgs& args) {
  const GateShape plain, &shape = args.shape;
  const bool is_plain = shape.alpha == plain.alpha && shape.beta == plain.beta && shape.limit == plain.limit;
  if (is_plain) return ActivateRows<F, Plain>(args);
  ActivateRows<F, Shaped>(args);
}

MXORT_INLINE void ActivateWith(const ActivateArgs& args) {
  switch (args.activation) {
    case Activation::kNone:
      return ActivateAs<None>(args);
    case Activation::kRelu:
      return ActivateAs<Relu>(args);
    case Activation::kGelu:
      return ActivateAs<Gelu>(args);
    case Activation::kGeluTanh:
      return ActivateAs<GeluTanh>(args);
    case Activation::kSilu:
      return ActivateAs<Silu>(args);
  }
}

}  // namespace mxort

#endif  // MXORT_KERNELS_EPILOGUE_KERNEL_H_
