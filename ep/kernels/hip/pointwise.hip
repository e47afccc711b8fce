// Functions of the elements at one place of several tensors, step after step: what a graph says in many small nodes
// reads its inputs once and writes its result once.
//
// One kernel computes all functions and every order of them: the branches are the same for all lanes. What lies between
// steps has the bits that a tensor of its type would have held.
#include "kernels/hip/args_pointwise.h"
#include "kernels/hip/element.h"
#include "kernels/hip/math.h"
#include "kernels/hip/strided.h"

#if defined(__gfx950__) || defined(__gfx942__)
using namespace mxort::hip;

// An element of any Type, as float; of those of whole numbers, as i64 (PointwiseStep::whole).
template <class Number>
MXORT_DEVICE Number LoadNumber(int type, const void* x, i64 i) {
  if constexpr (__is_same(Number, float)) {
    switch (static_cast<Type>(type)) {
      case Type::kFloat:
        return static_cast<const float*>(x)[i];
      case Type::kFloat16:
        return FromFloat16(static_cast<const u16*>(x)[i]);
      case Type::kBFloat16:
        return FromBFloat16(static_cast<const u16*>(x)[i]);
      default:
        break;
    }
  }
  switch (static_cast<Type>(type)) {
    case Type::kInt64:
      return static_cast<Number>(static_cast<const i64*>(x)[i]);
    case Type::kInt32:
      return static_cast<Number>(static_cast<const i32*>(x)[i]);
    case Type::kInt8:
      return static_cast<Number>(static_cast<const signed char*>(x)[i]);
    default:
      return static_cast<Number>(static_cast<const u8*>(x)[i]);
  }
}

template <class Number>
MXORT_DEVICE void StoreNumber(int type, void* y, i64 i, Number value) {
  if constexpr (__is_same(Number, float)) {
    switch (static_cast<Type>(type)) {
      case Type::kFloat:
        static_cast<float*>(y)[i] = value;
        return;
      case Type::kFloat16:
        static_cast<u16*>(y)[i] = ToFloat16(value);
        return;
      case Type::kBFloat16:
        static_cast<u16*>(y)[i] = ToBFloat16(value);
        return;
      default:
        break;
    }
  }
  switch (static_cast<Type>(type)) {
    case Type::kInt64:
      static_cast<i64*>(y)[i] = static_cast<i64>(value);
      return;
    case Type::kInt32:
      static_cast<i32*>(y)[i] = static_cast<i32>(value);
      return;
    case Type::kInt8:
      static_cast<signed char*>(y)[i] = static_cast<signed char>(static_cast<i32>(value));
      return;
    case Type::kUint8:
      static_cast<u8*>(y)[i] = static_cast<u8>(static_cast<i32>(value));
      return;
    default:  // bool
      static_cast<u8*>(y)[i] = value != Number{0};
      return;
  }
}

MXORT_DEVICE float GeluTanh(float x) { return 0.5f * x * (1.0f + Tanh(0.797884561f * Fma(0.044715f * x * x, x, x))); }
MXORT_DEVICE float Gelu(float x) { return 0.5f * x * (1.0f + Erf(x * 0.707106781f)); }
MXORT_DEVICE float Clamp01(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

MXORT_DEVICE float EvaluateFloat(const PointwiseStep& step, float x, float y) {
  const float a = step.a, b = step.b;
  switch (static_cast<Function>(step.function)) {
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
MXORT_DEVICE Number EvaluateAny(const PointwiseStep& step, Number x, Number y, Number z) {
  const Number zero{0};
  switch (static_cast<Function>(step.function)) {
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
      const Number most = step.from[1] >= 0 && x < y ? y : x;
      return step.from[2] >= 0 && most > z ? z : most;
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

// Results of steps: floats as float, whole numbers as i64, both as if they had been stored and loaded again.
struct Registers {
  u64 bits[kPointwiseRegisters];

  MXORT_METHOD u64 Get(int r) const {
    u64 value = bits[0];
    Unroll<1, kPointwiseRegisters>(
        [&](auto i) __attribute__((always_inline)) { value = r == i.value ? bits[i.value] : value; });
    return value;
  }
  MXORT_METHOD void Set(int r, u64 value) {
    Unroll<0, kPointwiseRegisters>(
        [&](auto i) __attribute__((always_inline)) { bits[i.value] = r == i.value ? value : bits[i.value]; });
  }
};

MXORT_DEVICE bool IsFloatType(int type) { return type <= static_cast<int>(Type::kBFloat16); }

template <class Number>
MXORT_DEVICE u64 Kept(int type, Number value) {
  if constexpr (__is_same(Number, float)) {
    if (IsFloatType(type)) return __builtin_bit_cast(u32, Rounded(type, value));
  }
  switch (static_cast<Type>(type)) {
    case Type::kInt32:
      return static_cast<u64>(i64{static_cast<i32>(value)});
    case Type::kInt8:
      return static_cast<u64>(i64{static_cast<signed char>(static_cast<i32>(value))});
    case Type::kUint8:
      return static_cast<u8>(static_cast<i32>(value));
    case Type::kBool:
      return value != Number{0};
    default:
      return static_cast<u64>(static_cast<i64>(value));
  }
}

template <class Number>
MXORT_DEVICE Number FromKept(int type, u64 bits) {
  if constexpr (__is_same(Number, float)) {
    if (IsFloatType(type)) return __builtin_bit_cast(float, static_cast<u32>(bits));
  }
  return static_cast<Number>(static_cast<i64>(bits));
}

template <class Number>
MXORT_DEVICE void Execute(const PointwiseArgs& args, const PointwiseStep& step, u32 index, bool last,
                          Registers& registers) {
  Number in[3];
  Unroll<0, 3>([&](auto o) __attribute__((always_inline)) {
    const int from = step.from[o.value], type = step.types[o.value];
    in[o.value] = Number{0};
    if (from >= kPointwiseRegister) {
      in[o.value] = FromKept<Number>(type, registers.Get(from - kPointwiseRegister));
    } else if (from >= 0) {
      const PointwiseInput& input = args.in[from];
      in[o.value] = LoadNumber<Number>(type, input.data, OffsetsOf(input.shape, index).at[0]);
    }
  });
  Number out;
  if constexpr (__is_same(Number, float)) {
    const bool only_float =
        step.function >= static_cast<int>(Function::kSqrt) && step.function <= static_cast<int>(Function::kPow);
    out = only_float ? EvaluateFloat(step, in[0], in[1]) : EvaluateAny<float>(step, in[0], in[1], in[2]);
  } else {
    out = EvaluateAny<Number>(step, in[0], in[1], in[2]);
  }
  if (last) {
    StoreNumber<Number>(step.type, args.out, index, out);
  } else {
    registers.Set(step.to, Kept<Number>(step.type, out));
  }
}

MXORT_KERNEL(256, 4) pointwise(PointwiseArgs args) {
#pragma clang loop unroll(disable)
  for (u64 i = static_cast<u64>(GroupX()) * kPointwiseThreads + Thread(); i < args.count; i += args.threads) {
    Registers registers{};
#pragma clang loop unroll(disable)
    for (int s = 0; s < args.steps; ++s) {
      const PointwiseStep& step = args.step[s];
      const bool last = s == args.steps - 1;
      if (step.whole) {
        Execute<i64>(args, step, static_cast<u32>(i), last, registers);
      } else {
        Execute<float>(args, step, static_cast<u32>(i), last, registers);
      }
    }
  }
}
#endif
