#include "device/matmul_plan.h"

#include <algorithm>

#include "device/self_check.h"
#include "kernels/float16.h"
#include "kernels/hip/args.h"
#include "kernels/hip/layout.h"

namespace mxort::device {
namespace {

constexpr uintptr_t kTensorAlignment = 16;  // what the kernels' wide loads and stores need
constexpr int64_t kRowGranule = 256;        // of the largest tile: launches of several begin at one
constexpr int64_t kMostRows = 65536;  // of a launch: keeps the workspace in bounds, and large launches fill any GPU
constexpr int64_t kMostTiles = (int64_t{1} << 24) - 1;  // HIP: grid times 256 threads below 2^32
constexpr int64_t kSmallestTile = 64;
constexpr int64_t kMostColumns = int64_t{1} << 27;
constexpr int64_t kFewRows = 64;  // whose kernels are chosen when the plan is made

bool IsAligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kTensorAlignment == 0; }

hip::Device ForSelection(const DeviceInfo& info, uint64_t disabled) {
  return {info.arch.c_str(), info.compute_units, disabled};
}

}  // namespace

Status Supports(const DeviceInfo& device, const MatMulSpec& spec, DataType type, uint64_t disabled) {
  if (!device.supported()) return {ErrorCode::kUnsupported, device.unsupported};
  if (spec.N > kMostColumns) {
    return {ErrorCode::kUnsupported,
            "N: got " + std::to_string(spec.N) + ", expected at most " + std::to_string(kMostColumns) + " on a GPU"};
  }
  for (const int64_t m : {int64_t{1}, kMostRows}) {
    if (hip::Select(ForSelection(device, disabled), spec, type, m).gemm) continue;
    if (disabled) return {ErrorCode::kUnsupported, "its kernels failed their self-check"};
    return {ErrorCode::kUnsupported, "K: got " + std::to_string(spec.K) + ", which no kernel for " + device.arch +
                                         " can address with this activation_format"};
  }
  return {};
}

Status MatMulPlan::Create(const std::shared_ptr<Arena>& arena, const MatMulSpec& spec, DataType type,
                          const HostWeights& host, const PlanOptions& options, std::unique_ptr<MatMulPlan>* plan) {
  const std::shared_ptr<Device> device = arena->device();
  MXORT_RETURN_IF_ERROR(Supports(device->info(), spec, type));
  std::shared_ptr<const DeviceWeights> weights;
  MXORT_RETURN_IF_ERROR(SharedDeviceWeights(arena, spec, host, &weights));
  std::unique_ptr<MatMulPlan> made(new MatMulPlan(spec, type, std::move(weights), options));
  MXORT_RETURN_IF_ERROR(CheckKernels(device, spec, type, options.self_check, &made->disabled_));
  MXORT_RETURN_IF_ERROR(made->LoadKernels());
  *plan = std::move(made);
  return {};
}

// Also the answer to whether there is a kernel for every number of rows.
Status MatMulPlan::LoadKernels() {
  size_t count = 0;
  const hip::GemmRow* rows = hip::GemmRows(&count);
  const hip::Device selection = ForSelection(device()->info(), disabled_);
  bool any_rows = false;
  for (size_t i = 0; i < count; ++i) {
    if (!options_.kernel.empty() && options_.kernel != rows[i].name) continue;
    const hip::Plan plan = hip::Select(selection, spec_, type_, 1, rows[i].name);
    if (!plan.gemm) continue;
    any_rows |= !rows[i].skinny || !options_.kernel.empty();
    MXORT_RETURN_IF_ERROR(Load(plan.gemm->object, plan.gemm->name));
    MXORT_RETURN_IF_ERROR(Load(plan.prepare_object, plan.prepare.kernel));
    MXORT_RETURN_IF_ERROR(Load(plan.prepare_object, "reduce"));
  }
  if (Followed()) MXORT_RETURN_IF_ERROR(Kernel::Load(device(), "prepare", "activate", &activate_));
  for (int64_t m = 1; m <= kFewRows; ++m) few_.push_back(Choose(m));
  if (any_rows) return {};
  if (!options_.kernel.empty()) {
    return {ErrorCode::kUnsupported, "kernel '" + options_.kernel + "' is not one for this problem on " +
                                         device()->info().arch + ", or failed its self-check"};
  }
  return {ErrorCode::kUnsupported, "every kernel for this activation_format failed its self-check on GPU " +
                                       std::to_string(device()->ordinal())};
}

MatMulPlan::Choice MatMulPlan::Choose(int64_t m) const {
  if (m > 0 && m <= static_cast<int64_t>(few_.size())) return few_[static_cast<size_t>(m - 1)];
  Choice choice;
  choice.plan = hip::Select(ForSelection(device()->info(), disabled_), spec_, type_, m,
                            options_.kernel.empty() ? nullptr : options_.kernel.c_str());
  if (!choice.plan.gemm) return choice;
  choice.gemm = Find(choice.plan.gemm->name);
  if (choice.plan.gemm->direct) return choice;
  choice.prepare = Find(choice.plan.prepare.kernel);
  if (choice.plan.splits > 1) choice.reduce = Find("reduce");
  return choice;
}

std::string MatMulPlan::KernelFor(int64_t m) const {
  const hip::Plan plan = Choose(m > 0 ? std::min(m, RowsOfLaunch()) : m).plan;
  return plan.gemm ? plan.gemm->name : "";
}

int64_t MatMulPlan::RowsOfLaunch() const {
  const int64_t tiles_n = (spec_.N + kSmallestTile - 1) / kSmallestTile;
  const int64_t rows = std::min(kMostRows, kMostTiles / tiles_n * kSmallestTile);
  const int64_t asked = (options_.most_rows + kRowGranule - 1) / kRowGranule * kRowGranule;
  return std::max(kRowGranule, (asked > 0 ? std::min(asked, rows) : rows) / kRowGranule * kRowGranule);
}

// Records of A, partial sums, and P where something follows.
size_t MatMulPlan::WorkspaceOf(const hip::Plan& plan, int64_t m) const {
  if (plan.gemm && plan.gemm->direct) return 0;
  const size_t p = Followed() ? static_cast<size_t>(m * spec_.N) * sizeof(float) : 0;
  return Aligned(plan.activation_bytes) + Aligned(plan.partial_bytes) + p;
}

size_t MatMulPlan::WorkspaceBytes(int64_t m) const {
  if (m <= 0) return 0;
  const int64_t whole = RowsOfLaunch(), rest = m % whole;
  return std::max(rest ? WorkspaceOf(Choose(rest).plan, rest) : 0,
                  m >= whole ? WorkspaceOf(Choose(whole).plan, whole) : 0);
}

Status MatMulPlan::Launch(void* stream, const void* a, int64_t m, void* y, void* workspace) const {
  if (m < 0) return {ErrorCode::kInvalidArgument, "rows of A: got " + std::to_string(m) + ", expected 0 or more"};
  if (m == 0) return {};
  if (!IsAligned(a) || !IsAligned(y) || !IsAligned(workspace)) {
    return {ErrorCode::kInvalidArgument, "A, Y: got an address that is no multiple of 16 bytes"};
  }
  const CurrentDevice current(device()->hip(), device()->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  const size_t size = DataTypeBytes(type_);
  for (int64_t begin = 0; begin < m; begin += RowsOfLaunch()) {
    const auto row = static_cast<size_t>(begin);
    MXORT_RETURN_IF_ERROR(LaunchRows(stream, static_cast<const char*>(a) + row * static_cast<size_t>(spec_.K) * size,
                                     std::min(m - begin, RowsOfLaunch()),
                                     static_cast<char*>(y) + row * static_cast<size_t>(y_columns()) * size, workspace));
  }
  return {};
}

Status MatMulPlan::Launch(void* stream, const void* a, int64_t m, void* y, const std::shared_ptr<Arena>& arena) const {
  if (m == 0) return {};
  Buffer workspace;
  MXORT_RETURN_IF_ERROR(workspace.Allocate(arena, WorkspaceBytes(m), stream));
  MXORT_RETURN_IF_ERROR(Launch(stream, a, m, y, workspace.data()));
  return stream ? Status() : device()->Synchronize();
}

Status MatMulPlan::LaunchRows(void* stream, const void* a, int64_t m, void* y, void* workspace) const {
  const Choice choice = Choose(m);
  if (!choice.gemm) {
    return {ErrorCode::kUnsupported, "kernel '" + options_.kernel + "': cannot compute " + std::to_string(m) + " rows"};
  }
  const auto rows = static_cast<unsigned>(m);
  if (choice.plan.gemm->direct) return LaunchDirect(stream, choice, a, rows, y, nullptr);
  auto* memory = static_cast<char*>(workspace);
  if (!Followed()) return LaunchProduct(stream, choice, a, rows, y, type_, memory);
  auto* p = reinterpret_cast<float*>(memory + WorkspaceOf(choice.plan, 0));
  MXORT_RETURN_IF_ERROR(LaunchProduct(stream, choice, a, rows, p, DataType::kFloat, memory));
  return LaunchActivate(stream, p, rows, y);
}

bool MatMulPlan::TakesNorm(const hip::NormArgs& norm, int64_t m) const {
  for (const void* p : {norm.x, norm.skip, norm.bias, norm.scale, norm.shift}) {
    if (!IsAligned(p)) return false;
  }
  if (m < 1 || m > RowsOfLaunch() || norm.shape.n != static_cast<unsigned>(spec_.K)) return false;
  const Choice choice = Choose(m);
  return choice.gemm && choice.plan.gemm->direct;
}

Status MatMulPlan::LaunchNormalised(void* stream, const hip::NormArgs& norm, int64_t m, void* y) const {
  if (!TakesNorm(norm, m) || !IsAligned(y)) return {ErrorCode::kInvalidArgument, "normalised product: not one kernel"};
  return LaunchDirect(stream, Choose(m), norm.x, static_cast<unsigned>(m), y, &norm);
}

Status MatMulPlan::LaunchDirect(void* stream, const Choice& choice, const void* a, unsigned m, void* y,
                                const hip::NormArgs* norm) const {
  const hip::Plan& plan = choice.plan;
  hip::DirectArgs args{};
  args.a = a;
  args.w = weights_->records();
  args.column_scale = weights_->column_scale();
  args.bias = weights_->bias();
  args.y = y;
  args.m = m;
  args.n = static_cast<unsigned>(spec_.N);
  args.k = static_cast<unsigned>(spec_.K);
  args.steps = plan.steps;
  args.terms = plan.terms;
  args.tiles = plan.tiles_n;
  args.y_columns = static_cast<unsigned>(y_columns());
  args.type = args.y_type = static_cast<int>(type_);
  args.rotation = spec_.rotation;
  args.emulated = plan.emulated;
  args.activation = static_cast<int>(options_.follow);
  args.gated = options_.gated_columns != 0;
  if (norm) args.norm = *norm;
  args.normalised = norm != nullptr;
  return choice.gemm->Launch(plan.gemm_grid, static_cast<unsigned>(plan.gemm->threads), stream, &args);
}

Status MatMulPlan::LaunchProduct(void* stream, const Choice& choice, const void* a, unsigned m, void* p,
                                 DataType p_type, char* workspace) const {
  const hip::Plan& plan = choice.plan;
  const int type = static_cast<int>(type_), of_p = static_cast<int>(p_type);
  const auto columns = static_cast<unsigned>(spec_.N);
  auto* partial = reinterpret_cast<float*>(workspace + Aligned(plan.activation_bytes));
  hip::PrepareArgs prepare = {a,          workspace,  m,    static_cast<unsigned>(spec_.K),
                              plan.steps, plan.terms, type, spec_.rotation};
  MXORT_RETURN_IF_ERROR(choice.prepare->Launch(plan.prepare_grid, plan.prepare_threads, stream, &prepare));
  hip::GemmArgs gemm = {workspace,
                        weights_->records(),
                        weights_->column_scale(),
                        weights_->bias(),
                        p,
                        partial,
                        m,
                        columns,
                        plan.steps,
                        plan.terms,
                        plan.steps_per_split,
                        plan.splits,
                        plan.tiles_m,
                        plan.tiles_n,
                        of_p};
  const auto threads = static_cast<unsigned>(plan.gemm->threads);
  MXORT_RETURN_IF_ERROR(choice.gemm->Launch(plan.gemm_grid, threads, stream, &gemm));
  if (plan.splits == 1) return {};
  hip::ReduceArgs reduce = {
      partial, weights_->column_scale(), weights_->bias(), p, m, columns, plan.splits, plan.reduce_grid.y, of_p};
  return choice.reduce->Launch(plan.reduce_grid, plan.reduce_threads, stream, &reduce);
}

Status MatMulPlan::LaunchActivate(void* stream, const float* p, unsigned m, void* y) const {
  hip::ActivateArgs args{};
  args.p = p;
  args.y = y;
  args.m = m;
  args.n = static_cast<unsigned>(y_columns());
  args.stride = static_cast<unsigned>(spec_.N);
  args.grid_rows = static_cast<unsigned>(std::min(m, 65535U));
  args.gated = options_.gated_columns != 0;
  args.activation = static_cast<int>(options_.follow);
  args.type = static_cast<int>(type_);
  return activate_.Launch({(args.n + 1023) / 1024, args.grid_rows, 1}, 256, stream, &args);
}

Status MatMulPlan::Load(const char* object, const char* name) {
  return Kernel::Load(device(), object, name, &kernels_[name]);
}

const Kernel* MatMulPlan::Find(const char* name) const {
  const auto kernel = kernels_.find(name);
  return kernel == kernels_.end() ? nullptr : &kernel->second;
}

}  // namespace mxort::device
