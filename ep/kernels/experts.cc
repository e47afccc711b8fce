#include "kernels/experts.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>

#include "kernels/activation.h"
#include "kernels/cpu_kernels.h"
#include "kernels/float16.h"
#include "kernels/workspace.h"

namespace mxort {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tasks of one row read 4 MB of weights: each starts a stream of its own, which takes the processor a while to follow
// (0.75 of what it reads at best with tasks of 300 KB, 0.93 so). Less work is split in kTasks, if that is worth it.
constexpr int64_t kTaskMultiplies = 8 * 1024 * 1024, kFewestMultiplies = 512 * 1024, kTasks = 8;
constexpr int64_t kTaskValues = 16 * 1024;        // the same of values to prepare
constexpr int64_t kTaskStrips = 8;                // of many rows: what a panel is read for once
constexpr int64_t kRowsBytes = 64 * 1024 * 1024;  // of prepared rows and inner values: rows are taken in blocks
constexpr int64_t kUnit = kStripColumns;          // inner columns that are computed together

int64_t MultipliesOfTask(int64_t all) { return std::clamp(CeilDiv(all, kTasks), kFewestMultiplies, kTaskMultiplies); }

// Memory of one call, 64-byte aligned.
class Memory {
 public:
  explicit Memory(size_t bytes) : data_(static_cast<uint8_t*>(::operator new(bytes, kAlignment))) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { ::operator delete(data_, kAlignment); }
  uint8_t* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  uint8_t* const data_;
};

// The packed weights of one expert.
struct PackedExpert {
  const uint8_t* data;
  ScaleRange scales;
};

// The rows of one expert as panels of a kernel.
struct Group {
  int64_t expert, first, rows;  // first: of the shares
  const uint8_t* packed;
  const Kernel* kernel;
  int panel_rows;
  int64_t panels;
  size_t stride, offset;  // of prepared panels
};

// One of the two products for all shares: their rows in panels, by expert.
class Product {
 public:
  // `held`: of the experts that have rows, in their order, where the operand's weights are not all packed.
  Product(const MatMulSpec& spec, const Kernels& kernels, const MatMulOperand& operand, const Routing& routing,
          const std::vector<LazyExperts::Packed>& held)
      : spec_(OfOneExpert(spec, routing.experts())),
        operand_(operand),
        columns_(spec_.N),
        shares_(routing.shares.size()) {
    size_t bytes = 0;
    for (const int64_t e : routing.Used()) {
      const int64_t first = routing.begin[static_cast<size_t>(e)];
      const int64_t rows = routing.begin[static_cast<size_t>(e + 1)] - first;
      const PackedExpert packed =
          operand.packed
              ? PackedExpert{operand.packed->data() + static_cast<size_t>(e) * kernels[0]->layout->bytes(spec_),
                             operand.packed->scales()}
              : PackedExpert{held[groups_.size()]->data(), held[groups_.size()]->scales()};
      const Kernel& kernel = KernelFor(kernels, rows, packed.scales);
      const int64_t panels = CeilDiv(rows, kernel.max_panel_rows(spec));
      const int panel_rows = static_cast<int>(CeilDiv(rows, panels));
      const size_t stride = (kernel.panel_bytes(spec, panel_rows) + 63) / 64 * 64;
      groups_.push_back({e, first, rows, packed.data, &kernel, panel_rows, CeilDiv(rows, panel_rows), stride, bytes});
      bytes += stride * static_cast<size_t>(groups_.back().panels);
    }
    prepared_ = std::make_unique<Memory>(bytes);
    declined_ = std::make_unique<std::atomic<bool>[]>(shares_);
  }

  const std::vector<Group>& groups() const { return groups_; }
  int64_t columns() const { return columns_; }  // of an expert
  bool declined(int64_t share) const { return declined_[static_cast<size_t>(share)]; }

  // row(share): where the row of A of a share is.
  template <class Row>
  void Prepare(DataType type, const Row& row, const ParallelFor& parallel) {
    const auto shares = static_cast<int64_t>(shares_);
    const int64_t tasks = std::clamp<int64_t>(shares * spec_.K / kTaskValues, 1, std::max<int64_t>(1, shares));
    parallel(tasks, [&](int64_t task) {
      thread_local Workspace space;
      auto* scratch =
          reinterpret_cast<float*>(space.Get(static_cast<size_t>(BlocksOf(spec_.K) * kBlockSize) * sizeof(float)));
      const int64_t begin = shares * task / tasks, end = shares * (task + 1) / tasks;
      for (const Group& group : groups_) {
        for (int64_t s = std::max(begin, group.first); s < std::min(end, group.first + group.rows); ++s) {
          const int64_t panel = (s - group.first) / group.panel_rows, first = panel * group.panel_rows;
          const int rows = static_cast<int>(std::min<int64_t>(group.panel_rows, group.rows - first));
          uint8_t* to = prepared_->get() + group.offset + group.stride * static_cast<size_t>(panel);
          declined_[static_cast<size_t>(s)] =
              !group.kernel->prepare(spec_, type, row(s), static_cast<int>(s - group.first - first), rows, scratch, to);
        }
      }
    });
  }

  // Columns of `count` strips of the group's expert, from strip `first` of it on, for a panel: to `y`, `stride` apart.
  void Compute(const Group& group, int64_t panel, int64_t first, int64_t count, float* y, int64_t stride) const {
    const int64_t before = group.expert * columns_;
    const MatMulArgs args = {&spec_,
                             BlocksOf(spec_.K),
                             group.rows,
                             group.panel_rows,
                             prepared_->get() + group.offset,
                             group.stride,
                             group.packed,
                             operand_.column_scale + before,
                             operand_.bias + before,
                             DataType::kFloat,
                             y,
                             stride,
                             panel * group.panel_rows,
                             first * kStripColumns};
    group.kernel->compute(args, {panel, panel + 1}, {first, first + count});
  }

  // A declined row's columns, in double precision.
  void ComputeReference(int64_t expert, DataType type, const void* a, float* y) const {
    const int64_t blocks = BlocksOf(spec_.K), row = expert * columns_;
    const Weights weights = {operand_.weights.codes + row * blocks * BlockBytes(spec_.weight_format),
                             operand_.weights.scales + row * blocks};
    ReferenceMatMul(spec_, type, a, weights, operand_.column_scale + row, operand_.bias + row, {0, 1}, DataType::kFloat,
                    y);
  }

 private:
  static MatMulSpec OfOneExpert(MatMulSpec spec, int64_t experts) {
    spec.N /= experts;
    return spec;
  }

  const MatMulSpec spec_;
  const MatMulOperand& operand_;
  const int64_t columns_;
  const size_t shares_;
  std::vector<Group> groups_;
  std::unique_ptr<Memory> prepared_;
  std::unique_ptr<std::atomic<bool>[]> declined_;
};

// A block of rows of one call.
class Block {
 public:
  Block(const ExpertsCall& call, Range rows, const ParallelFor& parallel)
      : call_(call),
        spec_(*call.spec),
        rows_(rows),
        parallel_(parallel),
        routing_(Route(spec_, call.type, call.router, rows)),
        inner_(routing_.shares.size() * static_cast<size_t>(spec_.inner) * sizeof(float)) {}

  void Run() {
    const auto x = [&](int64_t share) { return Row(call_.x, Share(share).row); };
    const auto h = [&](int64_t share) { return static_cast<const void*>(Inner(share)); };
    LazyExperts::Held held;
    if (call_.lazy) held = call_.lazy->Hold(routing_.Used(), parallel_);
    Product first(spec_.first, *call_.kernels, call_.first, routing_, held[0]);
    first.Prepare(call_.type, x, parallel_);
    ComputeInner(first);
    Product second(spec_.second, *call_.kernels, call_.second, routing_, held[1]);
    second.Prepare(DataType::kFloat, h, parallel_);
    ComputeOuter(second);
  }

 private:
  const Routing::Share& Share(int64_t share) const { return routing_.shares[static_cast<size_t>(share)]; }
  const void* Row(const void* matrix, int64_t row) const {
    return static_cast<const char*>(matrix) + static_cast<size_t>(row * spec_.hidden) * DataTypeBytes(call_.type);
  }
  float* Inner(int64_t share) const { return reinterpret_cast<float*>(inner_.get()) + share * spec_.inner; }

  // rows x columns of products to inner values, `y` where they go; of gated ones `products` holds what a unit's strips
  // gave, [rows, 2 * columns]: gates and ups by turns, or `columns` of each.
  void ActivateInner(int64_t rows, int64_t columns, float* products, float* y) const {
    const int64_t width = 2 * columns;
    if (spec_.gating == Gating::kInterleaved) {
      for (int64_t r = 0; r < rows; ++r) {
        const float* pairs = products + r * width;
        float* factors = products + rows * width + r * columns;
        for (int64_t i = 0; i < columns; ++i) y[r * spec_.inner + i] = pairs[2 * i];
        for (int64_t i = 0; i < columns; ++i) factors[i] = pairs[2 * i + 1];
      }
      products += rows * width;
    }
    call_.activate({spec_.activation, rows, columns, y, spec_.inner, spec_.gating == Gating::kNone ? nullptr : products,
                    columns, spec_.shape});
  }

  // A panel's inner columns of units [begin, end).
  void ComputeUnits(const Product& product, const Group& group, int64_t panel, int64_t begin, int64_t end) const {
    const int64_t columns = (end - begin) * kUnit, halves = spec_.inner / kStripColumns;
    const int64_t share = group.first + panel * group.panel_rows;
    const int64_t rows = std::min<int64_t>(group.panel_rows, group.rows - panel * group.panel_rows);
    thread_local Workspace space;  // of a panel
    auto* products = reinterpret_cast<float*>(space.Get(static_cast<size_t>(3 * rows * columns) * sizeof(float)));
    float* y = Inner(share) + begin * kUnit;
    switch (spec_.gating) {
      case Gating::kNone:
        product.Compute(group, panel, begin, end - begin, y, spec_.inner);
        break;
      case Gating::kInterleaved:
        product.Compute(group, panel, 2 * begin, 2 * (end - begin), products, 2 * columns);
        break;
      case Gating::kHalves:
        product.Compute(group, panel, begin, end - begin, y, spec_.inner);
        product.Compute(group, panel, halves + begin, end - begin, products, columns);
        break;
    }
    ActivateInner(rows, columns, products, y);
  }

  void ComputeInner(const Product& product) const {
    struct Task {
      const Group* group;
      int64_t begin, end;
    };
    std::vector<Task> tasks;
    const int64_t units = spec_.inner / kUnit, of_share = product.columns() * spec_.first.K;
    const int64_t of_task = MultipliesOfTask(static_cast<int64_t>(routing_.shares.size()) * of_share);
    for (const Group& group : product.groups()) {
      const int64_t most = group.panels > 1 ? CeilDiv(units, kTaskStrips / 2) : units;
      const int64_t count = std::clamp<int64_t>(CeilDiv(group.rows * of_share, of_task), 1, most);
      for (int64_t i = 0; i < count; ++i) tasks.push_back({&group, units * i / count, units * (i + 1) / count});
    }
    parallel_(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
      const Task& task = tasks[static_cast<size_t>(i)];
      for (int64_t panel = 0; panel < task.group->panels; ++panel) {
        ComputeUnits(product, *task.group, panel, task.begin, task.end);
      }
    });
    std::vector<float> products(static_cast<size_t>(2 * product.columns()));
    for (const Group& group : product.groups()) {
      for (int64_t s = group.first; s < group.first + group.rows; ++s) {
        if (!product.declined(s)) continue;
        product.ComputeReference(group.expert, call_.type, Row(call_.x, Share(s).row), products.data());
        if (spec_.gating == Gating::kInterleaved) {
          ActivateInner(1, spec_.inner, products.data(), Inner(s));
        } else {
          std::copy(products.begin(), products.begin() + spec_.inner, Inner(s));
          ActivateInner(1, spec_.inner, products.data() + spec_.inner, Inner(s));
        }
      }
    }
  }

  // A task is some columns of Y for all experts, in their order: sums need neither locks nor memory of a share each.
  void ComputeOuter(const Product& product) const {
    std::vector<std::vector<float>> references(routing_.shares.size());
    for (const Group& group : product.groups()) {
      for (int64_t s = group.first; s < group.first + group.rows; ++s) {
        if (!product.declined(s)) continue;
        std::vector<float>& y = references[static_cast<size_t>(s)];
        y.resize(static_cast<size_t>(spec_.hidden));
        product.ComputeReference(group.expert, DataType::kFloat, Inner(s), y.data());
      }
    }
    const auto shares = static_cast<int64_t>(routing_.shares.size());
    const int64_t strips = spec_.hidden / kStripColumns, multiplies = shares * spec_.inner * spec_.hidden;
    const int64_t most = rows_.end - rows_.begin > kTaskStrips ? CeilDiv(strips, kTaskStrips) : strips;
    const int64_t tasks = std::clamp<int64_t>(CeilDiv(multiplies, MultipliesOfTask(multiplies)), 1, most);
    parallel_(tasks, [&](int64_t task) {
      const int64_t begin = strips * task / tasks, end = strips * (task + 1) / tasks;
      SumColumns(product, references, begin, end - begin);
    });
  }

  void SumColumns(const Product& product, const std::vector<std::vector<float>>& references, int64_t first,
                  int64_t strips) const {
    const int64_t column = first * kStripColumns, columns = strips * kStripColumns, rows = rows_.end - rows_.begin;
    int64_t most = 0;
    for (const Group& group : product.groups()) most = std::max<int64_t>(most, group.panel_rows);
    thread_local Workspace space;  // bounded as a block of rows is
    auto* sums = reinterpret_cast<float*>(space.Get(static_cast<size_t>((rows + most) * columns) * sizeof(float)));
    float* products = sums + rows * columns;
    std::fill(sums, products, 0.0f);
    for (const Group& group : product.groups()) {
      for (int64_t panel = 0; panel < group.panels; ++panel) {
        const int64_t share = group.first + panel * group.panel_rows;
        const int64_t end = std::min(group.first + group.rows, share + group.panel_rows);
        product.Compute(group, panel, first, strips, products, columns);
        for (int64_t s = share; s < end; ++s) {
          const float* y = product.declined(s) ? references[static_cast<size_t>(s)].data() + column
                                               : products + (s - share) * columns;
          float* sum = sums + (Share(s).row - rows_.begin) * columns;
          const float weight = Share(s).weight;
          for (int64_t i = 0; i < columns; ++i) sum[i] += weight * y[i];
        }
      }
    }
    for (const int64_t row : routing_.unrouted) {
      float* sum = sums + (row - rows_.begin) * columns;
      std::fill(sum, sum + columns, std::numeric_limits<float>::quiet_NaN());
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t index = (rows_.begin + r) * spec_.hidden + column;
      for (int64_t i = 0; i < columns; ++i) StoreAs(call_.type, call_.y, index + i, sums[r * columns + i]);
    }
  }

  const ExpertsCall& call_;
  const ExpertsSpec& spec_;
  const Range rows_;
  const ParallelFor& parallel_;
  const Routing routing_;
  const Memory inner_;  // [shares, inner]
};

}  // namespace

void Experts(const ExpertsCall& call, const ParallelFor& parallel) {
  const ExpertsSpec& spec = *call.spec;
  const int64_t row_bytes = spec.chosen * (spec.hidden + 2 * spec.inner) * static_cast<int64_t>(sizeof(float));
  const int64_t rows = std::max<int64_t>(1, kRowsBytes / row_bytes);
  for (int64_t begin = 0; begin < call.rows; begin += rows) {
    Block(call, {begin, std::min(call.rows, begin + rows)}, parallel).Run();
  }
}

}  // namespace mxort
