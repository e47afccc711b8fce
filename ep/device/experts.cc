#include "device/experts.h"

#include <algorithm>
#include <cstring>

#include "device/self_check.h"
#include "kernels/float16.h"
#include "kernels/hip/args_experts.h"

namespace mxort::device {
namespace {

constexpr int64_t kMostGridY = 65535;

hip::Device ForSelection(const DeviceInfo& info, uint64_t disabled) {
  return {info.arch.c_str(), info.compute_units, disabled};
}

unsigned Count(int64_t x) { return static_cast<unsigned>(x); }

// Parts of one workspace, each aligned.
class Parts {
 public:
  template <class T>
  T* Take(int64_t count) {
    void* part = base_ ? static_cast<char*>(base_) + bytes_ : nullptr;
    bytes_ += Aligned(static_cast<size_t>(count) * sizeof(T));
    return static_cast<T*>(part);
  }
  explicit Parts(void* base) : base_(base) {}
  size_t bytes() const { return bytes_; }

 private:
  void* const base_;
  size_t bytes_ = 0;
};

// What lies in a launch's workspace.
struct Workspace {
  hip::Slots slots{};
  void* records[2] = {};
  float* products = nullptr;  // of the first, and of many rows of the second
  int *expert = nullptr, *rank = nullptr, *slot = nullptr;
  float* weight = nullptr;
  unsigned* counts = nullptr;
  size_t bytes = 0;

  Workspace(const hip::ExpertsPlan& plan, const ExpertsSpec& spec, int64_t rows, void* base) {
    Parts parts(base);
    slots.height = Count(plan.row->height);
    slots.count = parts.Take<unsigned>(2);
    slots.tiles = parts.Take<hip::ExpertTile>(plan.tiles);
    slots.row = parts.Take<int>(plan.slots);
    const int64_t pairs = rows * spec.chosen;
    if (plan.few) {
      slots.weight = parts.Take<float>(plan.slots);
    } else {
      expert = parts.Take<int>(pairs), rank = parts.Take<int>(pairs), slot = parts.Take<int>(pairs);
      weight = parts.Take<float>(pairs);
      counts = parts.Take<unsigned>(plan.waves * spec.experts);
    }
    for (int i = 0; i < 2; ++i) records[i] = parts.Take<char>(static_cast<int64_t>(plan.records_bytes[i]));
    products = reinterpret_cast<float*>(parts.Take<char>(static_cast<int64_t>(plan.products_bytes)));
    bytes = parts.bytes();
  }
};

}  // namespace

Status SupportsExperts(const DeviceInfo& device, const ExpertsSpec& spec, DataType type, uint64_t disabled) {
  if (!device.supported()) return {ErrorCode::kUnsupported, device.unsupported};
  if (spec.experts > hip::kMostExperts) {
    return {ErrorCode::kUnsupported, "experts: got " + std::to_string(spec.experts) + ", expected at most " +
                                         std::to_string(hip::kMostExperts) + " on a GPU"};
  }
  for (const int64_t rows : {int64_t{1}, hip::ExpertsLaunchRows(spec)}) {
    if (hip::SelectExperts(ForSelection(device, disabled), spec, type, rows).row) continue;
    if (disabled) return {ErrorCode::kUnsupported, "its kernels failed their self-check"};
    return {ErrorCode::kUnsupported, "experts of " + std::to_string(spec.hidden) + " inputs and " +
                                         std::to_string(spec.inner) + " hidden values, which no kernel for " +
                                         device.arch + " can address"};
  }
  return {};
}

Status ExpertsPlan::Create(const std::shared_ptr<Arena>& arena, const ExpertsSpec& spec, DataType type,
                           HostWeights first, HostWeights second, const ExpertsOptions& options,
                           std::unique_ptr<ExpertsPlan>* plan) {
  const std::shared_ptr<Device> device = arena->device();
  MXORT_RETURN_IF_ERROR(SupportsExperts(device->info(), spec, type));
  std::unique_ptr<ExpertsPlan> made(new ExpertsPlan(spec, type, options));
  first.groups = second.groups = spec.experts;
  MXORT_RETURN_IF_ERROR(SharedDeviceWeights(arena, spec.first, first, &made->weights_[0]));
  MXORT_RETURN_IF_ERROR(SharedDeviceWeights(arena, spec.second, second, &made->weights_[1]));
  MXORT_RETURN_IF_ERROR(CheckExpertsKernels(device, spec, type, options.self_check, &made->disabled_));
  MXORT_RETURN_IF_ERROR(made->LoadKernels());
  *plan = std::move(made);
  return {};
}

Status ExpertsPlan::LoadKernels() {
  const hip::Device selection = ForSelection(device()->info(), disabled_);
  size_t count = 0;
  const hip::ExpertsRow* rows = hip::ExpertsRows(&count);
  hip::ExpertsPlan any;
  bool any_rows = false;
  for (size_t i = 0; i < count; ++i) {
    if (!options_.kernel.empty() && options_.kernel != rows[i].name) continue;
    const hip::ExpertsPlan plan = hip::SelectExperts(selection, spec_, type_, 1, rows[i].name);
    if (!plan.row) continue;
    any = plan;
    any_rows |= !plan.few || !options_.kernel.empty();
    Products& products = products_[plan.row];
    MXORT_RETURN_IF_ERROR(Kernel::Load(device(), plan.row->object, plan.row->first, &products.kernel[0]));
    MXORT_RETURN_IF_ERROR(Kernel::Load(device(), plan.row->object, plan.row->second, &products.kernel[1]));
  }
  if (!any_rows) {
    return {ErrorCode::kUnsupported, options_.kernel.empty()
                                         ? "every kernel for this activation_format failed its self-check on GPU " +
                                               std::to_string(device()->ordinal())
                                         : "kernel '" + options_.kernel + "' is not one for these experts on " +
                                               device()->info().arch + ", or failed its self-check"};
  }
  const auto load = [&](const std::string& name, Kernel* kernel) {
    return Kernel::Load(device(), "experts", "experts_" + name, kernel);
  };
  const size_t prefix = std::strlen("prepare_");
  const std::string first = any.first.kernel + prefix, second = any.second.kernel + prefix;
  MXORT_RETURN_IF_ERROR(load("few_" + first, &few_));
  MXORT_RETURN_IF_ERROR(load("gather_" + first, &gather_));
  MXORT_RETURN_IF_ERROR(load("inner_" + second, &inner_));
  MXORT_RETURN_IF_ERROR(load("route", &route_));
  MXORT_RETURN_IF_ERROR(load("arrange", &arrange_));
  return load("combine", &combine_);
}

hip::ExpertsPlan ExpertsPlan::Choose(int64_t rows) const {
  return hip::SelectExperts(ForSelection(device()->info(), disabled_), spec_, type_, rows,
                            options_.kernel.empty() ? nullptr : options_.kernel.c_str());
}

int64_t ExpertsPlan::LaunchRows() const {
  const int64_t most = hip::ExpertsLaunchRows(spec_);
  return options_.most_rows > 0 ? std::min(options_.most_rows, most) : most;
}

std::string ExpertsPlan::KernelFor(int64_t rows) const {
  const hip::ExpertsPlan plan = Choose(std::min(rows, LaunchRows()));
  return plan.row ? plan.row->name : "";
}

size_t ExpertsPlan::WorkspaceBytes(int64_t rows) const {
  size_t bytes = 0;
  for (const int64_t part : {std::min(rows, LaunchRows()), rows % LaunchRows()}) {
    if (part <= 0) continue;
    const hip::ExpertsPlan plan = Choose(part);
    if (plan.row) bytes = std::max(bytes, Workspace(plan, spec_, part, nullptr).bytes);
  }
  return bytes;
}

// One launch's rows.
struct ExpertsPlan::Launching {
  hip::ExpertsPlan plan;
  Workspace work;
  const Products* products;
  void* stream;
  hip::RouterLogits router;
  const void* x;
  void* y;
  unsigned rows;
};

Status ExpertsPlan::Launch(void* stream, const void* x, const void* router, int64_t rows, void* y,
                           void* workspace) const {
  const CurrentDevice current(device()->hip(), device()->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  const size_t size = DataTypeBytes(type_);
  for (int64_t begin = 0; begin < rows; begin += LaunchRows()) {
    const int64_t count = std::min(rows - begin, LaunchRows());
    const hip::ExpertsPlan plan = Choose(count);
    if (!plan.row) {
      return {ErrorCode::kUnsupported,
              "kernel '" + options_.kernel + "': cannot compute " + std::to_string(count) + " rows"};
    }
    const size_t row = static_cast<size_t>(begin) * size, of_x = row * static_cast<size_t>(spec_.hidden);
    const Launching launch{plan,
                           Workspace(plan, spec_, count, workspace),
                           &products_.at(plan.row),
                           stream,
                           {static_cast<const char*>(router) + row * static_cast<size_t>(spec_.experts), Count(count),
                            Count(spec_.experts), Count(spec_.chosen), spec_.normalize, static_cast<int>(type_)},
                           static_cast<const char*>(x) + of_x,
                           static_cast<char*>(y) + of_x,
                           Count(count)};
    MXORT_RETURN_IF_ERROR(plan.few ? LaunchFew(launch) : LaunchMany(launch));
  }
  return {};
}

namespace {

hip::PrepareArgs PrepareOf(const hip::ExpertsPlan& plan, const ExpertsSpec& spec, DataType type, const void* x,
                           void* records, unsigned rows) {
  return {x,
          records,
          rows,
          Count(spec.hidden),
          plan.steps[0],
          Count(plan.first.terms),
          static_cast<int>(type),
          spec.first.rotation};
}

}  // namespace

Status ExpertsPlan::LaunchFew(const Launching& launch) const {
  const hip::ExpertsPlan& plan = launch.plan;
  const hip::RoutePrepareArgs prepare = {PrepareOf(plan, spec_, type_, launch.x, launch.work.records[0], launch.rows),
                                         launch.router, launch.work.slots};
  MXORT_RETURN_IF_ERROR(few_.Launch(plan.prepare_grid[0], hip::kExpertsThreads, launch.stream, &prepare));
  MXORT_RETURN_IF_ERROR(LaunchProduct(launch, 0));
  MXORT_RETURN_IF_ERROR(LaunchInner(launch));
  return LaunchProduct(launch, 1);
}

Status ExpertsPlan::LaunchMany(const Launching& launch) const {
  const hip::ExpertsPlan& plan = launch.plan;
  const Workspace& work = launch.work;
  constexpr unsigned kWaves = hip::kExpertsThreads / 64;
  const hip::RouteArgs route = {launch.router, work.expert,    work.rank, work.weight,
                                work.counts,   plan.wave_rows, plan.waves};
  MXORT_RETURN_IF_ERROR(
      route_.Launch({(plan.waves + kWaves - 1) / kWaves, 1, 1}, hip::kExpertsThreads, launch.stream, &route));
  const hip::ArrangeArgs arrange = {work.expert,    work.rank,   work.counts,          work.slot,
                                    work.slots,     launch.rows, Count(spec_.experts), Count(spec_.chosen),
                                    plan.wave_rows, plan.waves,  plan.group_waves};
  MXORT_RETURN_IF_ERROR(arrange_.Launch({plan.groups, 1, 1}, hip::kExpertsThreads, launch.stream, &arrange));
  const hip::GatherArgs gather = {PrepareOf(plan, spec_, type_, launch.x, work.records[0], launch.rows), work.slots};
  MXORT_RETURN_IF_ERROR(gather_.Launch(plan.prepare_grid[0], hip::kExpertsThreads, launch.stream, &gather));
  MXORT_RETURN_IF_ERROR(LaunchProduct(launch, 0));
  MXORT_RETURN_IF_ERROR(LaunchInner(launch));
  MXORT_RETURN_IF_ERROR(LaunchProduct(launch, 1));
  const unsigned n = Count(spec_.hidden), grid_rows = Count(std::min<int64_t>(launch.rows, kMostGridY));
  const hip::CombineArgs combine = {
      work.products,          work.slot, work.weight, launch.y, launch.rows, n, Count(spec_.chosen), grid_rows,
      static_cast<int>(type_)};
  return combine_.Launch({(n + 1023) / 1024, grid_rows, 1}, hip::kExpertsThreads, launch.stream, &combine);
}

Status ExpertsPlan::LaunchProduct(const Launching& launch, int product) const {
  const hip::ExpertsPlan& plan = launch.plan;
  const DeviceWeights& weights = *weights_[static_cast<size_t>(product)];
  const bool sums = plan.few && product == 1;
  const MatMulSpec& spec = product == 0 ? spec_.first : spec_.second;
  hip::ExpertsGemmArgs args{};
  args.slots = launch.work.slots;
  hip::GemmArgs& gemm = args.gemm;
  gemm.a = launch.work.records[product];
  gemm.w = weights.records();
  gemm.column_scale = weights.column_scale();
  gemm.bias = weights.bias();
  gemm.y = sums ? launch.y : launch.work.products;
  gemm.m = plan.few ? launch.rows : plan.slots;
  gemm.n = Count(spec.N / spec_.experts);
  gemm.steps = gemm.steps_per_split = plan.steps[product];
  gemm.terms = Count(product == 0 ? plan.first.terms : plan.second.terms);
  gemm.splits = 1;
  gemm.tiles_m = plan.tiles;
  gemm.tiles_n = plan.tiles_n[product];
  gemm.type = sums ? static_cast<int>(type_) : static_cast<int>(DataType::kFloat);
  const unsigned threads = sums ? hip::kDownThreads : hip::kExpertsThreads;
  return launch.products->kernel[product].Launch(plan.product_grid[product], threads, launch.stream, &args);
}

Status ExpertsPlan::LaunchInner(const Launching& launch) const {
  const hip::ExpertsPlan& plan = launch.plan;
  const hip::InnerArgs inner = {launch.work.products,
                                launch.work.records[1],
                                launch.work.slots,
                                Count(spec_.inner),
                                plan.steps[1],
                                Count(plan.second.terms),
                                spec_.second.rotation,
                                static_cast<int>(spec_.gating),
                                static_cast<int>(spec_.activation),
                                spec_.shape.alpha,
                                spec_.shape.beta,
                                spec_.shape.limit};
  return inner_.Launch(plan.prepare_grid[1], hip::kExpertsThreads, launch.stream, &inner);
}

}  // namespace mxort::device
