#include "device/rows.h"

#include <string>

namespace mxort::device {
namespace {

constexpr uint64_t kWaves = hip::kRowThreads / 64;
constexpr uint64_t kMostRows = uint64_t{1} << 24;  // HIP: workgroups times 256 work items below 2^32

Status GridOf(uint64_t groups, hip::Grid* grid) {
  if (groups >= kMostRows) {
    return {ErrorCode::kUnsupported, "a tensor of " + std::to_string(groups) + " rows, expected less than 2^24"};
  }
  *grid = {static_cast<unsigned>(groups), 1, 1};
  return {};
}

}  // namespace

Status MakeRowShape(int64_t outer, int64_t n, int64_t inner, hip::RowShape* shape) {
  constexpr int64_t kMost = int64_t{1} << 31;
  if (n >= kMost || inner >= kMost) {
    return {ErrorCode::kUnsupported, "an axis of more than 2^31 elements"};
  }
  *shape = {static_cast<uint64_t>(outer * inner), static_cast<unsigned>(n), static_cast<unsigned>(inner)};
  return {};
}

Status RowKernel::Load(const std::shared_ptr<Device>& device, const char* name, RowKernel* kernel) {
  MXORT_RETURN_IF_ERROR(Kernel::Load(device, "rows", std::string(name) + "_wave", &kernel->wave_));
  return Kernel::Load(device, "rows", std::string(name) + "_group", &kernel->group_);
}

Status RowKernel::Launch(void* stream, const hip::RowShape& shape, const void* args) const {
  const bool wave = shape.n <= hip::kWaveRowMost;
  hip::Grid grid{};
  MXORT_RETURN_IF_ERROR(GridOf(wave ? (shape.rows + kWaves - 1) / kWaves : shape.rows, &grid));
  return (wave ? wave_ : group_).Launch(grid, hip::kRowThreads, stream, args);
}

Status LaunchReduceWhole(const Kernel& kernel, void* stream, const hip::ReduceRowsArgs& args) {
  hip::Grid grid{};
  MXORT_RETURN_IF_ERROR(GridOf((args.shape.rows + hip::kRowThreads - 1) / hip::kRowThreads, &grid));
  return kernel.Launch(grid, hip::kRowThreads, stream, &args);
}

Status LaunchTop(const Kernel& kernel, void* stream, const hip::TopArgs& args) {
  hip::Grid grid{};
  MXORT_RETURN_IF_ERROR(GridOf((args.shape.rows + kWaves - 1) / kWaves, &grid));
  return kernel.Launch(grid, hip::kRowThreads, stream, &args);
}

}  // namespace mxort::device
