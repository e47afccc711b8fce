#include "ops/experts_spec.h"

namespace mxort {
namespace {

constexpr const char* kProductNames[kProducts] = {"gate_up", "down"};
constexpr const char* kPartNames[kParts] = {"_B", "_B_scale", "_column_scale", "_bias"};

int64_t Checked(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    Fail(std::string("attribute ") + name, std::to_string(value),
         std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

}  // namespace

std::string ExpertsInputName(size_t product, size_t part) {
  return std::string(kProductNames[product]) + kPartNames[part];
}

ExpertsAttributes::ExpertsAttributes(const Attributes& node) {
  ReadSpec(node);
  node.String("activation_format", &attributes_.activation_format);
  node.Int("rotation", &attributes_.rotation);
  node.Int("accuracy_level", &attributes_.accuracy_level);
  attributes_.K = attributes_.N = kMaxRotation;
  product_ = CheckAttributes(attributes_);
}

void ExpertsAttributes::ReadSpec(const Attributes& node) {
  spec_.chosen = node.Required("k");
  CheckDimension("k", spec_.chosen);
  int64_t normalize = 0, gating = 0;
  node.Int("normalize_routing_weights", &normalize);
  node.Int("swiglu_fusion", &gating);
  spec_.normalize = normalize != 0;
  spec_.gating = static_cast<Gating>(Checked("swiglu_fusion", gating, 0, kGatings - 1));
  spec_.activation = static_cast<Activation>(Checked("activation", node.Required("activation"), 0, kActivations - 1));
  float limit = 0, alpha = 1;
  node.Float("activation_alpha", &alpha);
  node.Float("swiglu_limit", &limit);
  if (spec_.activation == Activation::kSilu) spec_.shape.alpha = alpha;
  if (spec_.gating != Gating::kNone) {
    node.Float("activation_beta", &spec_.shape.beta);
    if (limit > 0) spec_.shape.limit = limit;
  }
  if (spec_.shape.alpha == 0) Fail("attribute activation_alpha", "0", "another number");
}

ExpertsSpec ExpertsAttributes::SpecOf(const ExpertsShapes& shapes) const {
  ExpertsSpec spec = spec_;
  const Shape &first = shapes[0][kCodes], &second = shapes[1][kCodes];
  if (first.size() != 3 || first[0] <= 0 || first[2] <= 0 || first[2] % kPackedBlockBytes != 0) {
    Fail("input gate_up_B", "shape " + Text(first), "[experts, columns, a multiple of 16]");
  }
  const int64_t parts = spec.gating == Gating::kNone ? 1 : 2;
  spec.experts = first[0];
  spec.hidden = 2 * first[2];
  spec.inner = first[1] / parts;
  if (first[1] <= 0 || first[1] % (parts * kBlockSize) != 0) {
    Fail("input gate_up_B", "shape " + Text(first),
         "[experts, a multiple of " + std::to_string(parts * kBlockSize) + ", bytes]");
  }
  if (spec.chosen > spec.experts) Checked("k", spec.chosen, 1, spec.experts);
  CheckShape("down_B", second, {spec.experts, spec.hidden, spec.inner / 2});
  const int64_t columns[kProducts] = {first[1], spec.hidden}, depths[kProducts] = {spec.hidden, spec.inner};
  for (size_t i = 0; i < kProducts; ++i) {
    for (size_t part = kScales; part < kParts; ++part) {
      const Shape& shape = shapes[i][part];
      Shape expected = {spec.experts, columns[i]};
      if (part == kScales) expected.push_back(depths[i] / kBlockSize);
      if (!shape.empty()) CheckShape(ExpertsInputName(i, part).c_str(), shape, expected);
    }
    MatMulAttributes attributes = attributes_;
    attributes.K = depths[i];
    attributes.N = columns[i];
    MatMulSpec& product = i == 0 ? spec.first : spec.second;
    product = CheckAttributes(attributes);
    product.N *= spec.experts;
  }
  return spec;
}

int64_t CheckExpertsRows(const ExpertsSpec& spec, const Shape& x, const Shape& router) {
  if (x.empty() || x.back() != spec.hidden) {
    Fail("input X", "shape " + Text(x), "[..., " + std::to_string(spec.hidden) + "]");
  }
  int64_t rows = 1, logits = 1;
  for (size_t i = 0; i + 1 < x.size(); ++i) rows *= x[i];
  for (size_t i = 0; i + 1 < router.size(); ++i) logits *= router[i];
  if (router.empty() || router.back() != spec.experts || logits != rows) {
    Fail("input router", "shape " + Text(router),
         "[" + std::to_string(rows) + "," + std::to_string(spec.experts) + "] or with the dimensions of X");
  }
  return rows;
}

}  // namespace mxort
