// What follows a product before it is stored (FusedMatMulMX*, GatedMatMulMX*): the activation, and a factor.
#ifndef MXORT_KERNELS_HIP_ACTIVATE_H_
#define MXORT_KERNELS_HIP_ACTIVATE_H_

#include "kernels/hip/args.h"
#include "kernels/hip/element.h"
#include "kernels/hip/math.h"

namespace mxort::hip {

MXORT_DEVICE float Followed(Follow activation, float x) {
  switch (activation) {
    case Follow::kNone:
      return x;
    case Follow::kRelu:
      return x < 0 ? 0 : x;  // NaN stays NaN
    case Follow::kGelu:
      return 0.5f * x * (1.0f + Erf(x * 0.70710678f));
    case Follow::kGeluTanh:  // x (1 + tanh u) / 2 is x times the sigmoid of 2 u
      return x * Sigmoid(x * Fma(0.07135482f, x * x, 1.59576912f));
    case Follow::kSilu:
      return x * Sigmoid(x);
  }
  return x;
}

MXORT_DEVICE void Activate(const ActivateArgs& args) {
  constexpr u32 kThreads = 256, kColumns = 4;
  const auto activation = static_cast<Follow>(args.activation);
  for (u64 row = GroupY(); row < args.m; row += args.grid_rows) {
    const float* p = args.p + row * args.stride;
    Unroll<0, kColumns>([&](auto i) __attribute__((always_inline)) {
      const u32 column = GroupX() * kThreads * kColumns + i.value * kThreads + Thread();
      if (column < args.n) {
        const u32 at = args.gated ? column / kGateColumns * 2 * kGateColumns + column % kGateColumns : column;
        const float f = Followed(activation, p[at]);
        StoreOne(args.type, args.y, row * args.n + column, args.gated ? f * p[at + kGateColumns] : f);
      }
    });
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_ACTIVATE_H_
