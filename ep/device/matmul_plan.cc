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

size_t WorkspaceOf(const hip::Plan& plan) { return Aligned(plan.activation_bytes) + plan.partial_bytes; }
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
  if (any_rows) return {};
  if (!options_.kernel.empty()) {
    return {ErrorCode::kUnsupported, "kernel '" + options_.kernel + "' is not one for this problem on " +
                                         device()->info().arch + ", or failed its self-check"};
  }
  return {ErrorCode::kUnsupported, "every kernel for this activation_format failed its self-check on GPU " +
                                       std::to_string(device()->ordinal())};
}

hip::Plan MatMulPlan::Choose(int64_t m) const {
  return hip::Select(ForSelection(device()->info(), disabled_), spec_, type_, m,
                     options_.kernel.empty() ? nullptr : options_.kernel.c_str());
}

std::string MatMulPlan::KernelFor(int64_t m) const {
  const hip::Plan plan = Choose(m > 0 ? std::min(m, RowsOfLaunch()) : m);
  return plan.gemm ? plan.gemm->name : "";
}

int64_t MatMulPlan::RowsOfLaunch() const {
  const int64_t tiles_n = (spec_.N + kSmallestTile - 1) / kSmallestTile;
  const int64_t rows = std::min(kMostRows, kMostTiles / tiles_n * kSmallestTile);
  const int64_t asked = (options_.most_rows + kRowGranule - 1) / kRowGranule * kRowGranule;
  return std::max(kRowGranule, (asked > 0 ? std::min(asked, rows) : rows) / kRowGranule * kRowGranule);
}

size_t MatMulPlan::WorkspaceBytes(int64_t m) const {
  if (m <= 0) return 0;
  const int64_t whole = RowsOfLaunch();
  const size_t rest = m % whole ? WorkspaceOf(Choose(m % whole)) : 0;
  return std::max(rest, m >= whole ? WorkspaceOf(Choose(whole)) : 0);
}

Status MatMulPlan::Launch(void* stream, const void* a, int64_t m, void* y, void* workspace) const {
  if (m < 0) return {ErrorCode::kInvalidArgument, "rows of A: got " + std::to_string(m) + ", expected 0 or more"};
  if (m == 0) return {};
  if (!IsAligned(a) || !IsAligned(y) || !IsAligned(workspace)) {
    return {ErrorCode::kInvalidArgument, "A, Y: got an address that is no multiple of 16 bytes"};
  }
  const CurrentDevice current(device()->hip(), device()->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  const size_t size = DataTypeBytes(type_), y_size = DataTypeBytes(y_type());
  for (int64_t begin = 0; begin < m; begin += RowsOfLaunch()) {
    const auto row = static_cast<size_t>(begin);
    MXORT_RETURN_IF_ERROR(LaunchRows(stream, static_cast<const char*>(a) + row * static_cast<size_t>(spec_.K) * size,
                                     std::min(m - begin, RowsOfLaunch()),
                                     static_cast<char*>(y) + row * static_cast<size_t>(spec_.N) * y_size, workspace));
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
  const hip::Plan plan = Choose(m);
  if (!plan.gemm) {
    return {ErrorCode::kUnsupported, "kernel '" + options_.kernel + "': cannot compute " + std::to_string(m) + " rows"};
  }
  const int type = static_cast<int>(type_), of_y = static_cast<int>(y_type());
  const auto rows = static_cast<unsigned>(m), columns = static_cast<unsigned>(spec_.N);
  auto* partial = reinterpret_cast<float*>(static_cast<char*>(workspace) + Aligned(plan.activation_bytes));
  hip::PrepareArgs prepare = {a,          workspace,  rows, static_cast<unsigned>(spec_.K),
                              plan.steps, plan.terms, type, spec_.rotation};
  MXORT_RETURN_IF_ERROR(LaunchKernel(plan.prepare.kernel, plan.prepare_grid, plan.prepare_threads, stream, &prepare));
  hip::GemmArgs gemm = {workspace,
                        weights_->records(),
                        weights_->column_scale(),
                        weights_->bias(),
                        y,
                        partial,
                        rows,
                        columns,
                        plan.steps,
                        plan.terms,
                        plan.steps_per_split,
                        plan.splits,
                        plan.tiles_m,
                        plan.tiles_n,
                        of_y};
  const auto threads = static_cast<unsigned>(plan.gemm->threads);
  MXORT_RETURN_IF_ERROR(LaunchKernel(plan.gemm->name, plan.gemm_grid, threads, stream, &gemm));
  if (plan.splits == 1) return {};
  hip::ReduceArgs reduce = {
      partial, weights_->column_scale(), weights_->bias(), y, rows, columns, plan.splits, plan.reduce_grid.y, of_y};
  return LaunchKernel("reduce", plan.reduce_grid, plan.reduce_threads, stream, &reduce);
}

Status MatMulPlan::Load(const char* object, const char* name) {
  return Kernel::Load(device(), object, name, &kernels_[name]);
}

Status MatMulPlan::LaunchKernel(const char* name, hip::Grid grid, unsigned threads, void* stream,
                                const void* arguments) const {
  const auto kernel = kernels_.find(name);
  if (kernel == kernels_.end()) {
    return {ErrorCode::kInvalidArgument, "kernel '" + std::string(name) + "' was not loaded"};
  }
  return kernel->second.Launch(grid, threads, stream, arguments);
}

}  // namespace mxort::device
