// Self-checks of pointwise.hip, strided.hip, gather_mx.hip and of what follows a product.
#include "device/strided.h"

#include <algorithm>
#include <cmath>

#include "device/pointwise.h"
#include "device/tensor_check_table.h"
#include "kernels/hip/args.h"
#include "kernels/hip/args_gather.h"
#include "mx_formats.h"

namespace mxort::device {
namespace {

using PointwiseFunction = hip::Function;

constexpr float kA = 0.25f, kB = 0.5f;  // parameters of the functions

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double GeluTanh(double x) { return x * Sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)); }
double Gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double Bounded(double x, double least, double most) { return std::min(std::max(x, least), most); }

double EvaluateFloat(PointwiseFunction function, double x, double y) {
  constexpr double a = static_cast<double>(kA), b = static_cast<double>(kB);
  switch (function) {
    case PointwiseFunction::kSqrt:
      return std::sqrt(x);
    case PointwiseFunction::kReciprocal:
      return 1 / x;
    case PointwiseFunction::kExp:
      return std::exp(x);
    case PointwiseFunction::kLog:
      return std::log(x);
    case PointwiseFunction::kErf:
      return std::erf(x);
    case PointwiseFunction::kTanh:
      return std::tanh(x);
    case PointwiseFunction::kSigmoid:
      return Sigmoid(x);
    case PointwiseFunction::kSoftplus:
      return std::log1p(std::exp(x));
    case PointwiseFunction::kSin:
      return std::sin(x);
    case PointwiseFunction::kCos:
      return std::cos(x);
    case PointwiseFunction::kFloor:
      return std::floor(x);
    case PointwiseFunction::kCeil:
      return std::ceil(x);
    case PointwiseFunction::kRound:
      return std::nearbyint(x);
    case PointwiseFunction::kLeakyRelu:
      return x < 0 ? a * x : x;
    case PointwiseFunction::kElu:
      return x < 0 ? a * std::expm1(x) : x;
    case PointwiseFunction::kHardSigmoid:
      return Bounded(a * x + b, 0, 1);
    case PointwiseFunction::kHardSwish:
      return x * Bounded(a * x + b, 0, 1);
    case PointwiseFunction::kSwish:
      return x * Sigmoid(a * x);
    case PointwiseFunction::kGelu:
      return Gelu(x + y);
    case PointwiseFunction::kGeluTanh:
      return GeluTanh(x + y);
    case PointwiseFunction::kMish:
      return x * std::tanh(std::log1p(std::exp(x)));
    case PointwiseFunction::kPow:
      return std::pow(x, y);
    default:
      return 0;
  }
}

// Of floats and of whole numbers; inputs 1 and 2 are there.
template <class Number>
Number EvaluateAny(PointwiseFunction function, Number x, Number y, Number z) {
  switch (function) {
    case PointwiseFunction::kIdentity:
      return x;
    case PointwiseFunction::kNeg:
      return -x;
    case PointwiseFunction::kAbs:
      return x < 0 ? -x : x;
    case PointwiseFunction::kSign:
      return static_cast<Number>((x > 0) - (x < 0));
    case PointwiseFunction::kNot:
      return x == 0;
    case PointwiseFunction::kRelu:
      return std::max<Number>(x, 0);
    case PointwiseFunction::kAdd:
      return x + y;
    case PointwiseFunction::kSub:
      return x - y;
    case PointwiseFunction::kMul:
      return x * y;
    case PointwiseFunction::kDiv:
      return x / y;
    case PointwiseFunction::kMin:
      return std::min(x, y);
    case PointwiseFunction::kMax:
      return std::max(x, y);
    case PointwiseFunction::kClip:
      return std::min(std::max(x, y), z);
    case PointwiseFunction::kEqual:
      return x == y;
    case PointwiseFunction::kLess:
      return x < y;
    case PointwiseFunction::kLessOrEqual:
      return x <= y;
    case PointwiseFunction::kGreater:
      return x > y;
    case PointwiseFunction::kGreaterOrEqual:
      return x >= y;
    case PointwiseFunction::kAnd:
      return x != 0 && y != 0;
    case PointwiseFunction::kOr:
      return x != 0 || y != 0;
    case PointwiseFunction::kXor:
      return (x != 0) != (y != 0);
    case PointwiseFunction::kWhere:
      return x != 0 ? y : z;
    case PointwiseFunction::kPRelu:
      return x < 0 ? x * y : x;
    default:
      return 0;
  }
}

bool OfFloats(PointwiseFunction function) {
  return function >= PointwiseFunction::kSqrt && function <= PointwiseFunction::kPow;
}
// Whether the function is one of positive numbers.
bool Positive(PointwiseFunction function) {
  return function == PointwiseFunction::kSqrt || function == PointwiseFunction::kReciprocal ||
         function == PointwiseFunction::kLog || function == PointwiseFunction::kPow;
}

// x [5, 3, 20], y [3, 20], z [5, 1, 1].
constexpr size_t kX = 300, kY = 60, kZ = 5;
const Dims kDims = {5, 3, 20};

Status CheckFunction(CheckRun& run, PointwiseFunction function, bool whole, KernelCheck* check) {
  const hip::Type type = whole ? hip::Type::kInt64 : static_cast<hip::Type>(run.type());
  Pointwise pointwise;
  MXORT_RETURN_IF_ERROR(
      Pointwise::Load(run.device(), {type, type, type}, {{function, {0, 1, 2}, type, kA, kB}}, &pointwise));
  const auto numbers = [&](size_t count, bool positive) {
    std::vector<float> x = run.Numbers(count, positive ? 2 : 4, positive ? 2.25f : 0);
    if (whole || !OfFloats(function)) {  // small whole numbers, so that some are equal and some zero
      for (float& value : x) value = std::round(value);
    }
    return x;
  };
  const bool divides = function == PointwiseFunction::kDiv;
  const std::vector<float> x = numbers(kX, Positive(function)), y = numbers(kY, divides), z = numbers(kZ, false);
  const auto send = [&](std::vector<float> values) {
    if (divides) std::replace(values.begin(), values.end(), 0.0f, 3.0f);
    return whole ? run.Send(std::vector<int64_t>(values.begin(), values.end())) : run.SendNumbers(values);
  };
  std::vector<double> right;
  for (size_t i = 0; i < kX; ++i) {
    const float v = x[i], second = y[i % kY], third = z[i / kY];
    const float divisor = divides && second == 0 ? 3.0f : second, dividend = divides && v == 0 ? 3.0f : v;
    right.push_back(
        whole ? static_cast<double>(EvaluateAny<int64_t>(function, static_cast<int64_t>(dividend),
                                                         static_cast<int64_t>(divisor), static_cast<int64_t>(third)))
        : OfFloats(function) ? EvaluateFloat(function, static_cast<double>(v), static_cast<double>(second))
                             : EvaluateAny<double>(function, static_cast<double>(dividend),
                                                   static_cast<double>(divisor), static_cast<double>(third)));
  }
  const std::vector<Operand> in = {{send(x), type, kDims}, {send(y), type, {3, 20}}, {send(z), type, {5, 1, 1}}};
  void* out = run.Allocate(kX * BytesOf(type));
  run.Launch([&](void* stream) { return pointwise.Launch(stream, in, out, kDims); });
  // What math.h promises, with room for what cancels in a composition.
  const double bound = whole || !(divides || OfFloats(function)) ? 0 : 1e-6;
  if (whole) {
    const std::vector<int64_t> got = run.Fetch<int64_t>(out, kX);
    Compare(std::vector<float>(got.begin(), got.end()), right, DataType::kFloat, bound, check);
  } else {
    Compare(run.FetchNumbers(out, kX), right, run.type(), bound, check);
  }
  return run.status();
}

// NaN and infinities, whose answers are 0 or 1.
Status CheckSpecial(CheckRun& run, PointwiseFunction function, KernelCheck* check) {
  const auto type = static_cast<hip::Type>(run.type());
  Pointwise pointwise;
  MXORT_RETURN_IF_ERROR(
      Pointwise::Load(run.device(), {type}, {{function, {0, kAbsent, kAbsent}, hip::Type::kBool, 1, 0}}, &pointwise));
  const std::vector<float> x = {INFINITY, -INFINITY, NAN, 1, 0, -2};
  const std::vector<uint8_t> right = {
      0, function == PointwiseFunction::kIsInf, function == PointwiseFunction::kIsNaN, 0, 0, 0};
  void* out = run.Allocate(x.size());
  run.Launch([&](void* stream) { return pointwise.Launch(stream, {{run.SendNumbers(x), type, {6}}}, out, {6}); });
  CompareBytes(run.Fetch(out, x.size()), right, check);
  return run.status();
}

// (x + y) z and what a step in between left, of numbers so small that no type rounds them.
Status CheckProgram(CheckRun& run, KernelCheck* check) {
  const auto type = static_cast<hip::Type>(run.type());
  const std::vector<PointwiseStep> steps = {{PointwiseFunction::kAdd, {0, 1, kAbsent}, type},
                                            {PointwiseFunction::kMul, {ResultOf(0), 2, kAbsent}, type},
                                            {PointwiseFunction::kSub, {ResultOf(1), ResultOf(0), kAbsent}, type}};
  Pointwise pointwise;
  MXORT_RETURN_IF_ERROR(Pointwise::Load(run.device(), {type, type, type}, steps, &pointwise));
  std::vector<float> x(kX), y(kY), z(kZ);
  for (auto* numbers : {&x, &y, &z}) {
    for (float& value : *numbers) value = static_cast<float>(run.Whole(9)) - 4;
  }
  std::vector<double> right;
  for (size_t i = 0; i < kX; ++i) {
    const double sum = static_cast<double>(x[i] + y[i % kY]);
    right.push_back(sum * static_cast<double>(z[i / kY]) - sum);
  }
  const std::vector<Operand> in = {
      {run.SendNumbers(x), type, kDims}, {run.SendNumbers(y), type, {3, 20}}, {run.SendNumbers(z), type, {5, 1, 1}}};
  void* out = run.AllocateNumbers(kX);
  run.Launch([&](void* stream) { return pointwise.Launch(stream, in, out, kDims); });
  Compare(run.FetchNumbers(out, kX), right, run.type(), 0, check);
  return run.status();
}

// Elements of at most 8 bytes; two of them where a lane is to move 16.
struct Width {
  size_t element, of_lane;
  explicit Width(int bytes) : element(static_cast<size_t>(std::min(bytes, 8))), of_lane(bytes > 8 ? 2 : 1) {}
};

template <class F>
Status CheckTable(CheckRun& run, const char* name, KernelCheck* check) {
  constexpr size_t kRows = 5, kColumns = 70, kBlocks = (kColumns + kBlockSize - 1) / kBlockSize;
  Kernel kernel;
  MXORT_RETURN_IF_ERROR(Kernel::Load(run.device(), "gather_mx", name, &kernel));
  std::vector<uint8_t> codes(kRows * kBlocks * kBlockSize),
      packed(kRows * kBlocks * static_cast<size_t>(PackedBytes<F>())), scales(kRows * kBlocks);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(run.Whole(1u << (CodeBits<F>() - 1)));  // all but the sign
  for (uint8_t& code : codes) code = code >= F::kFirstSpecial ? 1 : code;
  for (uint8_t& code : codes) code = static_cast<uint8_t>(code | run.Whole(2) << (CodeBits<F>() - 1));
  for (uint8_t& scale : scales) scale = static_cast<uint8_t>(kScaleBias - 3 + run.Whole(6));
  for (size_t i = 0; i < scales.size(); ++i) {
    PackBlock<F>(&codes[i * kBlockSize], &packed[i * static_cast<size_t>(PackedBytes<F>())]);
  }
  const std::vector<float> multiplier = run.Numbers(kRows, 0.5f, 1);
  const std::vector<int64_t> indices = {4, -5, 2, -1};
  std::vector<float> right;
  for (const int64_t index : indices) {
    const auto row = static_cast<size_t>(index < 0 ? index + static_cast<int64_t>(kRows) : index);
    for (size_t k = 0; k < kColumns; ++k) {
      const size_t at = row * kBlocks * kBlockSize + k;
      right.push_back(DecodeElement<F>(codes[at]) * DecodeScale(scales[at / kBlockSize]) * multiplier[row]);
    }
  }
  hip::GatherMxArgs args{};
  args.indices = run.Send(indices);
  args.codes = static_cast<const unsigned char*>(run.Send(packed));
  args.scales = static_cast<const unsigned char*>(run.Send(scales));
  args.multiplier = run.SendNumbers(multiplier);
  args.y = run.AllocateNumbers(right.size());
  args.count = indices.size(), args.rows = kRows, args.k = kColumns;
  args.grid_rows = 3, args.wide = 1, args.type = run.device_type();
  run.Launch([&](void* stream) { return kernel.Launch({1, args.grid_rows, 1}, 256, stream, &args); });
  CompareBytes(run.Fetch(args.y, right.size() * run.element_bytes()), InType(run.type(), right), check);
  return run.status();
}

double Follow(hip::Follow function, double x) {
  switch (function) {
    case hip::Follow::kRelu:
      return std::max(x, 0.0);
    case hip::Follow::kGelu:
      return Gelu(x);
    case hip::Follow::kGeluTanh:
      return GeluTanh(x);
    case hip::Follow::kSilu:
      return x * Sigmoid(x);
    default:
      return x;
  }
}

}  // namespace

Status CheckPointwise(CheckRun& run, int whole, KernelCheck* check) {
  for (int f = 0; f <= static_cast<int>(PointwiseFunction::kPRelu); ++f) {
    const auto function = static_cast<PointwiseFunction>(f);
    if (whole && OfFloats(function)) continue;
    const bool special = function == PointwiseFunction::kIsNaN || function == PointwiseFunction::kIsInf;
    MXORT_RETURN_IF_ERROR(special ? CheckSpecial(run, function, check)
                                  : CheckFunction(run, function, whole != 0, check));
  }
  return whole ? Status() : CheckProgram(run, check);
}

// A transpose.
Status CheckCopy(CheckRun& run, int bytes, KernelCheck* check) {
  constexpr size_t kRows = 9, kColumns = 35;
  Copier copier;
  MXORT_RETURN_IF_ERROR(Copier::Load(run.device(), &copier));
  const Width width(bytes);
  const auto whole = static_cast<size_t>(bytes);
  const std::vector<uint8_t> x = run.Bytes(kRows * kColumns * whole);
  std::vector<uint8_t> right(x.size());
  for (size_t i = 0; i < kRows * kColumns; ++i) {
    std::copy_n(&x[i * whole], whole, &right[(i % kColumns * kRows + i / kColumns) * whole]);
  }
  const auto step = static_cast<int64_t>(width.of_lane);
  const Dims dims = {kColumns, kRows, step};
  const View in = {run.Send(x), {step, int64_t{kColumns} * step, 1}};
  void* out = run.Allocate(x.size());
  run.Launch(
      [&](void* stream) { return copier.Launch(stream, in, out, ContiguousStrides(dims), dims, width.element); });
  CompareBytes(run.Fetch(out, right.size()), right, check);
  return run.status();
}

// Rows of a table by index, one of which does not exist.
Status CheckGather(CheckRun& run, int bytes, KernelCheck* check) {
  constexpr size_t kRows = 7, kColumns = 33;
  Gatherer gatherer;
  MXORT_RETURN_IF_ERROR(Gatherer::Load(run.device(), &gatherer));
  const Width width(bytes);
  const size_t row = kColumns * static_cast<size_t>(bytes);
  const std::vector<uint8_t> table = run.Bytes(kRows * row);
  const std::vector<int32_t> indices = {6, -7, 3, 7, -1};
  std::vector<uint8_t> right(indices.size() * row);
  for (size_t i = 0; i < indices.size(); ++i) {
    const int32_t index = indices[i] < 0 ? indices[i] + static_cast<int32_t>(kRows) : indices[i];
    if (index < static_cast<int32_t>(kRows))
      std::copy_n(&table[static_cast<size_t>(index) * row], row, &right[i * row]);
  }
  const auto of_row = static_cast<int64_t>(kColumns * width.of_lane);
  const Dims dims = {static_cast<int64_t>(indices.size()), of_row};
  const View data = {run.Send(table), {0, 1}}, at = {run.Send(indices), {1, 0}};
  void* out = run.Allocate(right.size());
  run.Launch([&](void* stream) {
    return gatherer.Launch(stream, data, at, hip::Type::kInt32, {{static_cast<int64_t>(kRows), of_row}}, out, dims,
                           width.element);
  });
  CompareBytes(run.Fetch(out, right.size()), right, check);
  return run.status();
}

Status CheckGatherMx(CheckRun& run, int format, KernelCheck* check) {
  switch (static_cast<WeightFormat>(format)) {
    case WeightFormat::kMxfp4:
      return CheckTable<E2M1>(run, "gather_mxfp4", check);
    case WeightFormat::kMxfp6E2M3:
      return CheckTable<E2M3>(run, "gather_mxfp6_e2m3", check);
    case WeightFormat::kMxfp6E3M2:
      return CheckTable<E3M2>(run, "gather_mxfp6_e3m2", check);
    case WeightFormat::kMxfp8E4M3:
      return CheckTable<E4M3>(run, "gather_mxfp8_e4m3", check);
    case WeightFormat::kMxint8:
      return CheckTable<INT8>(run, "gather_mxint8", check);
  }
  return {};
}

Status CheckActivate(CheckRun& run, int, KernelCheck* check) {
  constexpr unsigned kRows = 3, kColumns = 128;
  Kernel kernel;
  MXORT_RETURN_IF_ERROR(Kernel::Load(run.device(), "prepare", "activate", &kernel));
  std::vector<float> p(kRows * kColumns);
  for (float& x : p) x = static_cast<float>(run.Whole(1u << 16)) / 8192 - 4;
  hip::ActivateArgs args{};
  args.p = static_cast<const float*>(run.Send(p));
  args.m = kRows, args.stride = kColumns;
  args.grid_rows = 2, args.type = run.device_type();
  for (const int gated : {0, 1}) {
    args.gated = gated, args.n = kColumns / (gated ? 2 : 1);
    for (int f = 0; f <= static_cast<int>(hip::Follow::kSilu); ++f) {
      args.activation = f;
      const auto function = static_cast<hip::Follow>(f);
      args.y = run.AllocateNumbers(kRows * args.n);
      run.Launch([&](void* stream) { return kernel.Launch({1, args.grid_rows, 1}, 256, stream, &args); });
      std::vector<double> right;
      for (size_t i = 0; i < kRows * args.n; ++i) {
        const size_t row = i / args.n, column = i % args.n;
        const size_t at = row * kColumns + (gated ? column / 32 * 64 + column % 32 : column);
        const double y = Follow(function, static_cast<double>(p[at]));
        right.push_back(gated ? y * static_cast<double>(p[at + 32]) : y);
      }
      Compare(run.FetchNumbers(args.y, right.size()), right, run.type(), 1e-6, check);
    }
  }
  return run.status();
}

}  // namespace mxort::device
