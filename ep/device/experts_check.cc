// The self-check of the kernels of a mixture of experts: a layer of which everything up to the second product is exact.
//
// X is small multiples of 1/4, weights are powers of two times elements, the activation is ReLU, a rotation is of 64
// (its factor is 1/8), and logits are 0 or far below: so the products' sums and the weights 1/2 are floats without a
// rounding, and h has the one of its multiplication. The CPU then quantises the same bits as the device, and only the
// sums of the second product differ.
#include <algorithm>
#include <random>

#include "device/check_results.h"
#include "device/experts.h"
#include "kernels/cpu_kernels.h"
#include "kernels/float16.h"
#include "kernels/hip/args_experts.h"
#include "kernels/hip/layout.h"

namespace mxort::device {
namespace {

constexpr int64_t kExperts = 3, kChosen = 2, kHidden = 5 * hip::kStepK + 64, kInner = 3 * hip::kStepK + 64;
constexpr int64_t kCheckedRows = 12;

// One product's constants of all experts.
struct Operand {
  std::vector<uint8_t> codes, scales;
  std::vector<float> column_scale, bias;

  Operand(const MatMulSpec& spec, std::minstd_rand* random)
      : codes(static_cast<size_t>(spec.N * BlocksOf(spec.K) * kPackedBlockBytes)),
        scales(static_cast<size_t>(spec.N * BlocksOf(spec.K))),
        column_scale(static_cast<size_t>(spec.N)),
        bias(column_scale.size()) {
    for (uint8_t& code : codes) code = static_cast<uint8_t>((*random)() >> 8);
    for (uint8_t& scale : scales) scale = static_cast<uint8_t>(kScaleBias - 2 + ((*random)() >> 8) % 3);
    for (float& x : column_scale) x = ((*random)() >> 8) % 2 ? 0.5f : 1.0f;
    for (float& x : bias) x = static_cast<float>(((*random)() >> 8) % 9) / 4 - 1;
  }
  HostWeights host() const { return {{codes.data(), scales.data()}, column_scale.data(), bias.data()}; }

  // y [N of an expert] of a row of A, in double precision.
  void Product(const MatMulSpec& spec, int64_t expert, const float* a, float* y) const {
    MatMulSpec one = spec;
    one.N /= kExperts;
    const int64_t row = expert * one.N, block = row * BlocksOf(spec.K);
    ReferenceMatMul(one, DataType::kFloat, a, {codes.data() + block * kPackedBlockBytes, scales.data() + block},
                    column_scale.data() + row, bias.data() + row, {0, 1}, DataType::kFloat, y);
  }
};

struct ExpertsProblem {
  ExpertsSpec spec;
  int64_t rows;
  std::minstd_rand random{1};
  Operand first, second;
  std::vector<float> x, logits;

  // The products' attributes are those of `like`.
  static ExpertsSpec SpecLike(const ExpertsSpec& like) {
    ExpertsSpec spec;
    spec.experts = kExperts, spec.chosen = kChosen, spec.hidden = kHidden, spec.inner = kInner;
    spec.normalize = true;
    spec.gating = Gating::kHalves;
    spec.activation = Activation::kRelu;
    spec.shape.beta = 1;
    spec.first = like.first, spec.second = like.second;
    spec.first.K = kHidden, spec.first.N = kExperts * 2 * kInner;
    spec.second.K = kInner, spec.second.N = kExperts * kHidden;
    spec.first.rotation = spec.second.rotation = like.first.rotation == 1 ? 1 : 64;
    return spec;
  }
  ExpertsProblem(const ExpertsSpec& like, int64_t count)
      : spec(SpecLike(like)),
        rows(count),
        first(spec.first, &random),
        second(spec.second, &random),
        x(static_cast<size_t>(rows * kHidden)),
        logits(static_cast<size_t>(rows * kExperts)) {
    for (float& value : x) value = static_cast<float>((random() >> 8) % 13) / 4 - 1.5f;
    // Two at 0; in every eighth row all three, of which the first two are chosen.
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t left = row % 8 == 7 ? -1 : row % 4 == 3 ? 0 : 2;
      for (int64_t e = 0; e < kExperts; ++e) logits[static_cast<size_t>(row * kExperts + e)] = e == left ? -200 : 0;
    }
  }

  std::vector<double> Expected(int64_t row) const {
    const Routing routing = Route(spec, DataType::kFloat, logits.data(), {row, row + 1});
    std::vector<double> y(static_cast<size_t>(kHidden));
    std::vector<float> p(static_cast<size_t>(2 * kInner)), h(static_cast<size_t>(kInner)), of_expert(y.size());
    for (int64_t e = 0; e < kExperts; ++e) {
      const int64_t share = routing.begin[static_cast<size_t>(e)];
      if (share == routing.begin[static_cast<size_t>(e + 1)]) continue;
      first.Product(spec.first, e, x.data() + row * kHidden, p.data());
      for (size_t i = 0; i < h.size(); ++i) h[i] = std::max(p[i], 0.0f) * (p[h.size() + i] + 1);
      second.Product(spec.second, e, h.data(), of_expert.data());
      const auto weight = static_cast<double>(routing.shares[static_cast<size_t>(share)].weight);
      for (size_t i = 0; i < y.size(); ++i) y[i] += weight * static_cast<double>(of_expert[i]);
    }
    return y;
  }
};

// Y of the problem, computed on the device with one row of the table and widened to float.
Status Run(const std::shared_ptr<Device>& device, const ExpertsProblem& problem, DataType type, const char* kernel,
           std::vector<float>* y) {
  const auto arena = Arena::Create(device);
  ExpertsOptions options;
  options.self_check = false;
  options.kernel = kernel;
  std::unique_ptr<ExpertsPlan> plan;
  MXORT_RETURN_IF_ERROR(
      ExpertsPlan::Create(arena, problem.spec, type, problem.first.host(), problem.second.host(), options, &plan));
  std::unique_ptr<Stream> stream;
  MXORT_RETURN_IF_ERROR(Stream::Create(device, &stream));
  std::vector<uint8_t> x = InType(type, problem.x), logits = InType(type, problem.logits);
  Buffer x_device, logits_device, y_device, workspace;
  MXORT_RETURN_IF_ERROR(x_device.Allocate(arena, x.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(y_device.Allocate(arena, x.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(logits_device.Allocate(arena, logits.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(workspace.Allocate(arena, plan->WorkspaceBytes(problem.rows), stream->handle()));
  const int ordinal = device->ordinal();
  MXORT_RETURN_IF_ERROR(Copy(ordinal, x_device.data(), kHost, x.data(), x.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(Copy(ordinal, logits_device.data(), kHost, logits.data(), logits.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(plan->Launch(stream->handle(), x_device.data(), logits_device.data(), problem.rows,
                                     y_device.data(), workspace.data()));
  MXORT_RETURN_IF_ERROR(Copy(kHost, x.data(), ordinal, y_device.data(), x.size(), stream->handle()));
  MXORT_RETURN_IF_ERROR(stream->Synchronize());
  *y = FromType(type, x);
  return {};
}

Status Check(const std::shared_ptr<Device>& device, const hip::ExpertsRow& row, const ExpertsSpec& spec, DataType type,
             KernelCheck* check) {
  // Few rows: all of a fragment but some. Many: the first expert has two tiles, the second most of one.
  const ExpertsProblem problem(spec, row.height == hip::kFewRows ? hip::kFewRows - 3 : row.height + 21);
  check->bound = CheckBound(problem.spec.second);
  std::vector<float> y;
  MXORT_RETURN_IF_ERROR(Run(device, problem, type, row.name, &y));
  Comparison comparison(type);
  for (int64_t i = 0; i < std::min(kCheckedRows, problem.rows); ++i) {
    const int64_t checked = i * 17 % problem.rows;
    const std::vector<double> right = problem.Expected(checked);
    for (size_t c = 0; c < right.size(); ++c) comparison.Add(y[static_cast<size_t>(checked * kHidden) + c], right[c]);
  }
  comparison.Judge(check);
  return {};
}

}  // namespace

Status CheckExpertsKernels(const std::shared_ptr<Device>& device, const ExpertsSpec& spec, DataType type, bool check,
                           uint64_t* disabled) {
  *disabled = 0;
  size_t count = 0;
  const hip::ExpertsRow* rows = hip::ExpertsRows(&count);
  for (size_t i = 0; i < count; ++i) {
    const DeviceInfo& info = device->info();
    const hip::ExpertsPlan plan =
        hip::SelectExperts({info.arch.c_str(), info.compute_units}, spec, type, 1, rows[i].name);
    if (!plan.row) continue;
    KernelCheck result;
    result.kernel = rows[i].name;
    result.preparation = std::string(plan.first.kernel) + " " + plan.second.kernel;
    result.terms = plan.second.terms;
    result.type = type;
    const int variant = 2 * static_cast<int>(spec.first.accuracy_level) + (spec.first.rotation != 1);
    bool passed = true;
    MXORT_RETURN_IF_ERROR(CheckOnce(
        device, result, variant, check, [&](KernelCheck* made) { return Check(device, rows[i], spec, type, made); },
        &passed));
    if (!passed) *disabled |= uint64_t{1} << i;
  }
  return {};
}

}  // namespace mxort::device
