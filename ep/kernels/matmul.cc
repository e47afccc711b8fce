#include "kernels/matmul.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kernels/float16.h"
#include "kernels/layout.h"
#include "kernels/workspace.h"

namespace mxort {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Work below which handing it to another thread costs more than it saves: some microseconds.
constexpr int64_t kTaskValues = 16 * 1024;       // of A, when preparing
constexpr int64_t kTaskMultiplies = 512 * 1024;  // when multiplying; of several panels four times as many
constexpr int64_t kTaskStrips = 4;               // that a panel is read for once, where tasks are enough
// Panels prepared at once: those of more rows are prepared and multiplied a block of rows after the other. Of one
// thread they do not leave the second-level cache in between, and what a thread keeps does not grow with M. A block is
// many tasks of multiplying, so the weights are read no more often than without.
constexpr int64_t kWorkspaceBytes = 1024 * 1024;

// Panels of equal height: 16 rows on a kernel of 12 become 8 + 8, not 12 + 4.
int PanelRows(const MatMulCall& call, const Kernel& kernel) {
  const int64_t panels = CeilDiv(call.M, kernel.max_panel_rows(*call.spec)), unit = kernel.blocking.rows;
  return static_cast<int>(CeilDiv(CeilDiv(call.M, panels), unit) * unit);
}

// Fills the panels and returns the rows that the kernel declined.
std::vector<int64_t> PreparePanels(const MatMulCall& call, const Kernel& kernel, const MatMulArgs& args,
                                   uint8_t* prepared, const ParallelFor& parallel) {
  const MatMulSpec& spec = *call.spec;
  const int64_t panels = CeilDiv(call.M, args.panel_rows);
  const int64_t panels_per_task = std::max<int64_t>(1, kTaskValues / (spec.K * args.panel_rows));
  std::mutex mutex;
  std::vector<int64_t> declined;
  parallel(CeilDiv(panels, panels_per_task), [&](int64_t task) {
    thread_local Workspace scratch_space;
    auto* scratch =
        reinterpret_cast<float*>(scratch_space.Get(static_cast<size_t>(args.blocks * kBlockSize) * sizeof(float)));
    const int64_t row_end = std::min(call.M, (task + 1) * panels_per_task * args.panel_rows);
    for (int64_t m = task * panels_per_task * args.panel_rows; m < row_end; ++m) {
      const int64_t panel = m / args.panel_rows, first = panel * args.panel_rows;
      const int rows = static_cast<int>(std::min<int64_t>(args.panel_rows, call.M - first));
      const char* a = static_cast<const char*>(call.a) + static_cast<size_t>(m * spec.K) * DataTypeBytes(call.type);
      uint8_t* out = prepared + static_cast<size_t>(panel) * args.panel_stride;
      if (kernel.prepare(spec, call.type, a, static_cast<int>(m - first), rows, scratch, out)) continue;
      const std::lock_guard<std::mutex> lock(mutex);
      declined.push_back(m);
    }
  });
  return declined;
}

MatMulArgs With(const MatMulOperand& operand, MatMulArgs args) {
  args.packed = operand.packed->data();
  args.column_scale = operand.column_scale;
  args.bias = operand.bias;
  return args;
}

// Row m of Y, columns from n on.
void StoreRow(const MatMulCall& call, int64_t m, int64_t n, int64_t count, const float* values) {
  const int64_t index = m * call.spec->N + n;
  if (call.type == DataType::kFloat) {
    std::copy(values, values + count, static_cast<float*>(call.y) + index);
  } else {
    for (int64_t i = 0; i < count; ++i) StoreAs(call.type, call.y, index + i, values[i]);
  }
}

// A piece of Y: where it is, or where it is made before it becomes another type.
struct Piece {
  float* data;
  int64_t stride;
};

// Some panels after the others: the epilogue follows while the products are in a core's caches. Of floats they lie
// where Y does.
void ComputeActivated(const MatMulCall& call, const Kernel& kernel, const MatMulArgs& args, Range panels,
                      Range strips) {
  thread_local Workspace workspace;  // two times the products of a step
  const Epilogue& epilogue = call.epilogue;
  const int64_t column = strips.begin * kStripColumns;
  const int64_t columns = std::min(call.spec->N, strips.end * kStripColumns) - column;
  const int64_t step = std::min(kernel.blocking.panels, panels.end - panels.begin);
  const auto floats = static_cast<size_t>(2 * step * args.panel_rows * columns);
  auto* factors = reinterpret_cast<float*>(workspace.Get(floats * sizeof(float)));
  for (int64_t panel = panels.begin; panel < panels.end; panel += step) {
    const int64_t end = std::min(panels.end, panel + step);
    const int64_t row = panel * args.panel_rows, rows = std::min<int64_t>(call.M, end * args.panel_rows) - row;
    Piece y = {factors + step * args.panel_rows * columns, columns};
    if (call.type == DataType::kFloat) y = {static_cast<float*>(call.y) + row * call.spec->N + column, call.spec->N};
    const auto compute = [&](MatMulArgs to, const Piece& piece) {
      to.type = DataType::kFloat;
      to.y = piece.data;
      to.y_stride = piece.stride;
      to.y_row = row;
      to.y_column = column;
      kernel.compute(to, {panel, end}, strips);
    };
    compute(args, y);
    if (epilogue.factor) compute(With(*epilogue.factor, args), {factors, columns});
    epilogue.activate(
        {epilogue.activation, rows, columns, y.data, y.stride, epilogue.factor ? factors : nullptr, columns});
    if (call.type == DataType::kFloat) continue;
    for (int64_t r = 0; r < rows; ++r) StoreRow(call, row + r, column, columns, y.data + r * columns);
  }
}

void ComputeAll(const MatMulCall& call, const Kernel& kernel, const MatMulArgs& args, const ParallelFor& parallel) {
  const Blocking& blocking = kernel.blocking;
  const int64_t strips = StripsOf(call.spec->N), panels = CeilDiv(call.M, args.panel_rows);
  const int64_t panels_per_task = std::clamp<int64_t>(
      blocking.prepared_bytes / static_cast<int64_t>(std::max<size_t>(1, args.panel_stride)), 1, panels);
  const int64_t panel_tasks = CeilDiv(panels, panels_per_task);
  const int64_t strip_multiplies = std::min(call.M, panels_per_task * args.panel_rows) * args.blocks * kBlockSize *
                                   kStripColumns * (call.epilogue.factor ? 2 : 1);
  // Tasks of equal size: of two threads neither waits for the other.
  const int64_t task_multiplies = panels > 1 ? 4 * kTaskMultiplies : kTaskMultiplies;
  const int64_t units = CeilDiv(strips, blocking.strips);
  const int64_t most = panel_tasks > 1 ? CeilDiv(strips, std::max(kTaskStrips, blocking.strips)) : units;
  const int64_t strip_tasks = std::clamp<int64_t>(CeilDiv(strips * strip_multiplies, task_multiplies), 1, most);
  parallel(panel_tasks * strip_tasks, [&](int64_t task) {
    const int64_t panel = task / strip_tasks * panels_per_task, strip = task % strip_tasks;
    const Range of_panels = {panel, std::min(panels, panel + panels_per_task)};
    const Range of_strips = {units * strip / strip_tasks * blocking.strips,
                             std::min(strips, units * (strip + 1) / strip_tasks * blocking.strips)};
    if (call.epilogue.activate) return ComputeActivated(call, kernel, args, of_panels, of_strips);
    kernel.compute(args, of_panels, of_strips);
  });
}

ScaleRange Scales(const MatMulCall& call) {
  const ScaleRange& first = call.operand.packed->scales();
  if (!call.epilogue.factor) return first;
  const ScaleRange& second = call.epilogue.factor->packed->scales();
  return {std::min(first.lowest, second.lowest), std::max(first.highest, second.highest)};
}

// The call for rows [begin, end) of A alone.
MatMulCall RowsOf(const MatMulCall& call, int64_t begin, int64_t end) {
  const size_t bytes = DataTypeBytes(call.type);
  MatMulCall part = call;
  part.M = end - begin;
  part.a = static_cast<const char*>(call.a) + static_cast<size_t>(begin * call.spec->K) * bytes;
  part.y = static_cast<char*>(call.y) + static_cast<size_t>(begin * call.spec->N) * bytes;
  return part;
}

// A row that the kernel declined.
void ComputeReference(const MatMulCall& call, int64_t row) {
  const MatMulSpec& spec = *call.spec;
  const auto product = [&](const MatMulOperand& operand, DataType type, void* y) {
    ReferenceMatMul(spec, call.type, call.a, operand.weights, operand.column_scale, operand.bias, {row, row + 1}, type,
                    y);
  };
  if (!call.epilogue.activate) {
    char* y = static_cast<char*>(call.y) + static_cast<size_t>(row * spec.N) * DataTypeBytes(call.type);
    return product(call.operand, call.type, y);
  }
  std::vector<float> products(static_cast<size_t>(spec.N)), factors(products);
  product(call.operand, DataType::kFloat, products.data());
  if (call.epilogue.factor) product(*call.epilogue.factor, DataType::kFloat, factors.data());
  call.epilogue.activate({call.epilogue.activation, 1, spec.N, products.data(), spec.N,
                          call.epilogue.factor ? factors.data() : nullptr, spec.N});
  StoreRow(call, row, 0, spec.N, products.data());
}

void MultiplyBlock(const MatMulCall& call, const Kernel& kernel, int panel_rows, size_t stride, uint8_t* prepared,
                   const ParallelFor& parallel) {
  const MatMulArgs args = With(call.operand, {call.spec, BlocksOf(call.spec->K), call.M, panel_rows, prepared, stride,
                                              nullptr, nullptr, nullptr, call.type, call.y, call.spec->N, 0, 0});
  const std::vector<int64_t> declined = PreparePanels(call, kernel, args, prepared, parallel);
  if (static_cast<int64_t>(declined.size()) < call.M) ComputeAll(call, kernel, args, parallel);
  parallel(static_cast<int64_t>(declined.size()),
           [&](int64_t i) { ComputeReference(call, declined[static_cast<size_t>(i)]); });
}

}  // namespace

void MatMul(const MatMulCall& call, const ParallelFor& parallel) {
  if (call.M == 0 || call.spec->N == 0) return;
  const Kernel& kernel = KernelFor(*call.kernels, call.M, Scales(call));
  const int panel_rows = PanelRows(call, kernel);  // of all blocks: sums are grouped by it, so Y depends on it
  const size_t stride = (kernel.panel_bytes(*call.spec, panel_rows) + 63) / 64 * 64;
  const int64_t panels = std::clamp<int64_t>(kWorkspaceBytes / static_cast<int64_t>(std::max<size_t>(1, stride)), 1,
                                             CeilDiv(call.M, panel_rows));
  thread_local Workspace workspace;  // kWorkspaceBytes, or one panel
  uint8_t* prepared = workspace.Get(stride * static_cast<size_t>(panels));
  for (int64_t row = 0; row < call.M; row += panels * panel_rows) {
    MultiplyBlock(RowsOf(call, row, std::min(call.M, row + panels * panel_rows)), kernel, panel_rows, stride, prepared,
                  parallel);
  }
}

}  // namespace mxort
