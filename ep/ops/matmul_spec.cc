#include "ops/matmul_spec.h"

#include "mx_formats.h"

namespace mxort {
namespace {

template <class Format>
struct FormatName {
  const char* name;
  Format format;
};
constexpr FormatName<ActivationFormat> kActivationFormats[] = {
    {"none", ActivationFormat::kNone},
    {"mxfp8_e4m3", ActivationFormat::kMxfp8E4M3},
    {"mxfp6_e2m3", ActivationFormat::kMxfp6E2M3},
    {"mxfp6_e3m2", ActivationFormat::kMxfp6E3M2},
    {"mxfp4", ActivationFormat::kMxfp4},
};
constexpr FormatName<WeightFormat> kWeightFormats[] = {
    {"mxfp4", WeightFormat::kMxfp4},          {"mxfp6_e2m3", WeightFormat::kMxfp6E2M3},
    {"mxfp6_e3m2", WeightFormat::kMxfp6E3M2}, {"mxfp8_e4m3", WeightFormat::kMxfp8E4M3},
    {"mxint8", WeightFormat::kMxint8},
};

template <class Format, size_t kCount>
Format FormatNamed(const FormatName<Format> (&formats)[kCount], const std::string& what, const std::string& name) {
  std::string known;
  for (const FormatName<Format>& row : formats) {
    if (name == row.name) return row.format;
    known += std::string(known.empty() ? "" : ", ") + row.name;
  }
  Fail(what, "'" + name + "'", "one of " + known);
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

const std::vector<WeightOperator> kKinds = {
    {"MXFP4", {WeightFormat::kMxfp4}},
    {"MXFP6", {WeightFormat::kMxfp6E2M3, WeightFormat::kMxfp6E3M2}},
    {"MXFP8", {WeightFormat::kMxfp8E4M3}},
    {"MXINT8", {WeightFormat::kMxint8}},
};

// Operators of each kind under names with this prefix.
void AddOperators(const char* prefix, bool activated, size_t operands, std::vector<WeightOperator>* operators) {
  for (const WeightOperator& kind : kKinds)
    operators->push_back({prefix + kind.name, kind.formats, activated, operands});
}

}  // namespace

const std::vector<WeightOperator>& MatMulOperators() {
  static const std::vector<WeightOperator> operators = [] {
    std::vector<WeightOperator> made;
    AddOperators("MatMul", false, 1, &made);
    AddOperators("FusedMatMul", true, 1, &made);
    AddOperators("GatedMatMul", true, 2, &made);
    return made;
  }();
  return operators;
}

const std::vector<WeightOperator>& GatherOperators() {
  static const std::vector<WeightOperator> operators = [] {
    std::vector<WeightOperator> made;
    AddOperators("Gather", false, 1, &made);
    return made;
  }();
  return operators;
}

const WeightOperator& Mxfp4Operator() { return MatMulOperators()[0]; }

int64_t ExponentBits(WeightFormat format) {
  return WithElement(format, [](auto element) { return decltype(element)::kExponentBits; });
}

WeightFormat FormatOf(const WeightOperator& op, const Attributes& node) {
  int64_t exponent_bits = ExponentBits(op.formats[0]);
  node.Int("exponent_bits", &exponent_bits);
  std::string known;
  for (const WeightFormat format : op.formats) {
    if (ExponentBits(format) == exponent_bits) return format;
    known += (known.empty() ? "" : " or ") + std::to_string(ExponentBits(format));
  }
  Fail("attribute exponent_bits", std::to_string(exponent_bits), known);
}

Activation ActivationOf(const WeightOperator& op, const Attributes& node) {
  if (!op.activated) return Activation::kNone;
  const int64_t activation = node.Required("activation");
  if (activation < 0 || activation >= kActivations) {
    Fail("attribute activation", std::to_string(activation), "0 to " + std::to_string(kActivations - 1));
  }
  return static_cast<Activation>(activation);
}

WeightFormat WeightFormatOf(const std::string& name) { return FormatNamed(kWeightFormats, "weight format", name); }

std::vector<std::string> WeightFormatNames() {
  std::vector<std::string> names;
  for (const auto& row : kWeightFormats) names.push_back(row.name);
  return names;
}

MatMulAttributes ReadAttributes(const Attributes& node, const WeightOperator& op) {
  MatMulAttributes attributes;
  attributes.K = node.Required("K");
  attributes.N = node.Required("N");
  node.Int("rotation", &attributes.rotation);
  node.Int("accuracy_level", &attributes.accuracy_level);
  node.String("activation_format", &attributes.activation_format);
  attributes.weight_format = FormatOf(op, node);
  return attributes;
}

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
  return {attributes.K,
          attributes.N,
          static_cast<int>(rotation),
          FormatNamed(kActivationFormats, "attribute activation_format", attributes.activation_format),
          LevelOf(attributes.accuracy_level),
          attributes.weight_format};
}

void CheckInput(const MatMulSpec& spec, Input input, const Shape& shape) {
  const int64_t blocks = BlocksOf(spec.K);
  switch (input) {
    case kB:
      return CheckShape(kInputNames[input], shape, {spec.N, blocks * BlockBytes(spec.weight_format)});
    case kBScale:
      return CheckShape(kInputNames[input], shape, {spec.N, blocks});
    case kColumnScale:
      return CheckShape(kInputNames[input], shape, {spec.N});
    case kBias:
      return CheckShape(kInputNames[input], shape, {spec.N});
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
