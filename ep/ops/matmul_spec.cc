#include "ops/matmul_spec.h"

#include "mx_formats.h"

namespace mxort {
namespace {

struct FormatName {
  const char* name;
  ActivationFormat format;
};
constexpr FormatName kFormats[] = {
    {"none", ActivationFormat::kNone},
    {"mxfp8_e4m3", ActivationFormat::kMxfp8E4M3},
    {"mxfp6_e2m3", ActivationFormat::kMxfp6E2M3},
    {"mxfp6_e3m2", ActivationFormat::kMxfp6E3M2},
    {"mxfp4", ActivationFormat::kMxfp4},
};

ActivationFormat FormatOf(const std::string& name) {
  std::string known;
  for (const FormatName& row : kFormats) {
    if (name == row.name) return row.format;
    known += std::string(known.empty() ? "" : ", ") + row.name;
  }
  Fail("attribute activation_format", "'" + name + "'", "one of " + known);
}

AccuracyLevel LevelOf(int64_t level) {
  switch (level) {
    case 0:  // the default
    case 3:
      return AccuracyLevel::kBf16;
    case 1:
      return AccuracyLevel::kFp32;
    case 4:
      return AccuracyLevel::kInt8;
    default:
      Fail("attribute accuracy_level", std::to_string(level), "0, 1, 3 or 4");
  }
}

}  // namespace

MatMulSpec CheckAttributes(const MatMulAttributes& attributes) {
  CheckDimension("K", attributes.K);
  CheckDimension("N", attributes.N);
  const int64_t rotation = attributes.rotation;
  if (rotation != 1 && rotation != 32 && rotation != 64 && rotation != kMaxRotation) {
    Fail("attribute rotation", std::to_string(rotation), "1, 32, 64 or 128");
  }
  const int64_t padded = BlocksOf(attributes.K) * kBlockSize;
  if (padded % rotation != 0) {
    Fail("attribute rotation", std::to_string(rotation) + " with K=" + std::to_string(attributes.K),
         "a divisor of K rounded up to blocks, " + std::to_string(padded));
  }
  return {attributes.K, attributes.N, static_cast<int>(rotation), FormatOf(attributes.activation_format),
          LevelOf(attributes.accuracy_level)};
}

void CheckInput(const MatMulSpec& spec, Input input, const Shape& shape) {
  const int64_t blocks = BlocksOf(spec.K);
  switch (input) {
    case kB:
      return CheckShape("B", shape, {spec.N, blocks * kPackedBlockBytes});
    case kBScale:
      return CheckShape("B_scale", shape, {spec.N, blocks});
    case kColumnScale:
      return CheckShape("column_scale", shape, {spec.N});
    case kBias:
      return CheckShape("bias", shape, {spec.N});
    case kA:
    case kInputs:
      break;
  }
}

Shape OutputShape(const MatMulSpec& spec, Shape a) {
  if (a.empty() || a.back() != spec.K) Fail("input A", "shape " + Text(a), "[..., " + std::to_string(spec.K) + "]");
  a.back() = spec.N;
  return a;
}

}  // namespace mxort
