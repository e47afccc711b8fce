// Every element of a tensor once: functions of up to three tensors with broadcasting, and copies between views.
//
// One kernel computes all functions: the branch on the function is the same for all lanes, and what such a kernel costs
// is the memory it reads and writes.
#include "kernels/hip/math.h"
#include "kernels/hip/strided.h"

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

MXORT_DEVICE float GeluTanh(float x) { return 0.5f * x * (1.0f + Tanh(0.797884561f * Fma(0.044715f * x * x, x, x))); }
MXORT_DEVICE float Gelu(float x) { return 0.5f * x * (1.0f + Erf(x * 0.707106781f)); }
MXORT_DEVICE float Clamp01(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

MXORT_DEVICE float EvaluateFloat(const PointwiseArgs& args, float x, float y) {
  const float a = args.a, b = args.b;
  switch (static_cast<Function>(args.function)) {
    case Function::kSqrt:
      return __builtin_sqrtf(x);
    case Function::kReciprocal:
      return Divide(1.0f, x);
    case Function::kExp:
      return Exp(x);
    case Function::kLog:
      return Log(x);
    case Function::kErf:
      return Erf(x);
    case Function::kTanh:
      return Tanh(x);
    case Function::kSigmoid:
      return Sigmoid(x);
    case Function::kSoftplus:
      return Softplus(x);
    case Function::kSin:
      return SinCos(x, 0);
    case Function::kCos:
      return SinCos(x, 1);
    case Function::kFloor:
      return __builtin_floorf(x);
    case Function::kCeil:
      return __builtin_ceilf(x);
    case Function::kRound:
      return __builtin_rintf(x);
    case Function::kIsNaN:
      return IsNaN(x);
    case Function::kIsInf:
      return (x == -kInfinity && a != 0.0f) || (x == kInfinity && b != 0.0f);
    case Function::kLeakyRelu:
      return x < 0.0f ? a * x : x;
    case Function::kElu:
      return x < 0.0f ? a * ExpMinus1(x) : x;
    case Function::kHardSigmoid:
      return IsNaN(x) ? x : Clamp01(a * x + b);
    case Function::kHardSwish:
      return IsNaN(x) ? x : x * Clamp01(a * x + b);
    case Function::kSwish:
      return x * Sigmoid(a * x);
    case Function::kGelu:
      return Gelu(x + y);
    case Function::kGeluTanh:
      return GeluTanh(x + y);
    case Function::kMish:
      return x * Tanh(Softplus(x));
    case Function::kPow:
      return Pow(x, y);
    default:
      __builtin_unreachable();  // it is EvaluateAny's
  }
}

MXORT_DEVICE i64 Divide(i64 x, i64 y) { return x / y; }
MXORT_DEVICE bool IsUnordered(float x) { return IsNaN(x); }
MXORT_DEVICE bool IsUnordered(i64) { return false; }

// What has a meaning for floats and for whole numbers. NaN passes through Min, Max, Clip and Relu.
template <class Number>
MXORT_DEVICE Number EvaluateAny(const PointwiseArgs& args, Number x, Number y, Number z) {
  const Number zero{0};
  switch (static_cast<Function>(args.function)) {
    case Function::kIdentity:
      return x;
    case Function::kNeg:
      return -x;
    case Function::kAbs:
      return x < zero ? -x : x == zero ? zero : x;
    case Function::kSign:
      return x > zero ? Number{1} : x < zero ? Number{-1} : x;
    case Function::kNot:
      return x == zero ? Number{1} : zero;
    case Function::kRelu:
      return x < zero ? zero : x;
    case Function::kAdd:
      return x + y;
    case Function::kSub:
      return x - y;
    case Function::kMul:
      return x * y;
    case Function::kDiv:
      return Divide(x, y);
    case Function::kMin:
      return IsUnordered(x) || x < y ? x : y;
    case Function::kMax:
      return IsUnordered(x) || x > y ? x : y;
    case Function::kClip: {
      const Number most = args.in[1] && x < y ? y : x;
      return args.in[2] && most > z ? z : most;
    }
    case Function::kEqual:
      return x == y;
    case Function::kLess:
      return x < y;
    case Function::kLessOrEqual:
      return x <= y;
    case Function::kGreater:
      return x > y;
    case Function::kGreaterOrEqual:
      return x >= y;
    case Function::kAnd:
      return x != zero && y != zero;
    case Function::kOr:
      return x != zero || y != zero;
    case Function::kXor:
      return (x != zero) != (y != zero);
    case Function::kWhere:
      return x != zero ? y : z;
    case Function::kPRelu:
      return x < zero ? x * y : x;
    default:
      __builtin_unreachable();  // it is EvaluateFloat's
  }
}

template <class Number>
MXORT_DEVICE void Pointwise(const PointwiseArgs& args) {
  const bool only_float =
      args.function >= static_cast<int>(Function::kSqrt) && args.function <= static_cast<int>(Function::kPow);
  ForElements(args.count, [&](u32 index) __attribute__((always_inline)) {
    const Offsets<4> offsets = OffsetsOf(args.shape, index);
    Number in[3];
    Unroll<0, 3>([&](auto o) __attribute__((always_inline)) {
      in[o.value] = args.in[o.value] ? LoadNumber<Number>(args.in_types[o.value], args.in[o.value], offsets.at[o.value])
                                     : Number{0};
    });
    Number out;
    if constexpr (__is_same(Number, float)) {
      out = only_float ? EvaluateFloat(args, in[0], in[1]) : EvaluateAny<float>(args, in[0], in[1], in[2]);
    } else {
      out = EvaluateAny<Number>(args, in[0], in[1], in[2]);
    }
    StoreNumber<Number>(args.out_type, args.out, offsets.at[3], out);
  });
}

// Where an operand or the result is of a float type, and where all are whole numbers.
MXORT_KERNEL(256, 4) pointwise_float(PointwiseArgs args) { Pointwise<float>(args); }
MXORT_KERNEL(256, 4) pointwise_int(PointwiseArgs args) { Pointwise<i64>(args); }

template <class Word>
MXORT_DEVICE void CopyWords(const CopyArgs& args) {
  ForElements(args.count, [&](u32 index) __attribute__((always_inline)) {
    const Offsets<2> offsets = OffsetsOf(args.shape, index);
    static_cast<Word*>(args.out)[offsets.at[1]] = static_cast<const Word*>(args.in)[offsets.at[0]];
  });
}

MXORT_KERNEL(256, 4) copy_1(CopyArgs args) { CopyWords<u8>(args); }
MXORT_KERNEL(256, 4) copy_2(CopyArgs args) { CopyWords<u16>(args); }
MXORT_KERNEL(256, 4) copy_4(CopyArgs args) { CopyWords<u32>(args); }
MXORT_KERNEL(256, 4) copy_8(CopyArgs args) { CopyWords<u64>(args); }
MXORT_KERNEL(256, 4) copy_16(CopyArgs args) { CopyWords<u32x4>(args); }

// out = data at an offset to which indices in memory contribute. An index beyond its axis reads zero.
template <class Word>
MXORT_DEVICE void GatherWords(const GatherArgs& args) {
  ForElements(args.count, [&](u32 index) __attribute__((always_inline)) {
    const Offsets<3> offsets = OffsetsOf(args.shape, index);
    i64 at = offsets.at[0];
    bool inside = true;
#pragma clang loop unroll(disable)
    for (u32 q = 0; q < args.axes; ++q) {
      const i64 from = offsets.at[1] + q;
      const i64 i = static_cast<Type>(args.index_type) == Type::kInt64 ? static_cast<const i64*>(args.indices)[from]
                                                                       : static_cast<const i32*>(args.indices)[from];
      const i64 size = args.sizes[q], wrapped = i < 0 ? i + size : i;
      inside = inside && wrapped >= 0 && wrapped < size;
      at += wrapped * args.strides[q];
    }
    Word word{};
    if (inside) word = static_cast<const Word*>(args.data)[at];
    static_cast<Word*>(args.out)[offsets.at[2]] = word;
  });
}

MXORT_KERNEL(256, 4) gather_1(GatherArgs args) { GatherWords<u8>(args); }
MXORT_KERNEL(256, 4) gather_2(GatherArgs args) { GatherWords<u16>(args); }
MXORT_KERNEL(256, 4) gather_4(GatherArgs args) { GatherWords<u32>(args); }
MXORT_KERNEL(256, 4) gather_8(GatherArgs args) { GatherWords<u64>(args); }
MXORT_KERNEL(256, 4) gather_16(GatherArgs args) { GatherWords<u32x4>(args); }
#endif
