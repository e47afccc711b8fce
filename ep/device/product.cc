#include "device/product.h"

#include <algorithm>
#include <string>
#include <utility>

namespace mxort::device {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kMostGroups = (int64_t{1} << 24) - 1;  // HIP: grid times threads below 2^32
constexpr int64_t kMostOffset = (int64_t{1} << 31) - 1;  // what kNowhere of product_source.h leaves
constexpr int64_t kSkinnyRows = 16, kSkinnyStep = 512;   // k: two rounds of the waves
constexpr int64_t kMostTile = 256;
constexpr int64_t kTileK = 64;  // the most k of a stage

constexpr const char* kNames[Product::kKernels] = {"64x64", "128x128", "256x256", "skinny_k", "skinny_rows"};

const char* NameOf(hip::Type type) {
  return type == hip::Type::kFloat ? "float" : type == hip::Type::kFloat16 ? "float16" : "bfloat16";
}
int64_t BytesOf(hip::Type type) { return type == hip::Type::kFloat ? 4 : 2; }
int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Batch dimensions without those of extent 1, neighbours merged where both operands allow it; and where B has none and
// A's rows go on from one batch to the next, one product of many rows.
ProductProblem Merged(const ProductProblem& p) {
  ProductProblem merged = p;
  merged.batch.clear(), merged.a.batch.clear(), merged.b.batch.clear();
  for (size_t d = 0; d < p.batch.size(); ++d) {
    if (p.batch[d] == 1) continue;
    const int64_t extent = p.batch[d], a = p.a.batch[d], b = p.b.batch[d];
    if (!merged.batch.empty() && merged.a.batch.back() == a * extent && merged.b.batch.back() == b * extent) {
      merged.batch.back() *= extent;
      merged.a.batch.back() = a, merged.b.batch.back() = b;
    } else {
      merged.batch.push_back(extent);
      merged.a.batch.push_back(a), merged.b.batch.push_back(b);
    }
  }
  const bool bias_repeats = !p.bias || p.bias_row == 0;
  while (!merged.batch.empty() && bias_repeats && merged.b.batch.back() == 0 &&
         (merged.m == 1 || merged.a.batch.back() == merged.m * merged.a.row)) {
    if (merged.m == 1) merged.a.row = merged.a.batch.back();
    merged.m *= merged.batch.back();
    merged.batch.pop_back(), merged.a.batch.pop_back(), merged.b.batch.pop_back();
  }
  return merged;
}

// Whether loads of `bytes`, along K or along the rows, are aligned and whole everywhere in an operand.
bool Whole(const ProductView& view, int64_t stride, int64_t extent, int64_t other_stride, int64_t other_extent,
           int64_t bytes, int64_t element) {
  const auto whole = [&](int64_t elements) { return elements * element % bytes == 0; };
  return (stride == 1 || extent == 1) && whole(extent) && (other_extent == 1 || whole(other_stride)) &&
         reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(bytes) == 0 &&
         std::all_of(view.batch.begin(), view.batch.end(), whole);
}

bool AlongK(const ProductView& view, int64_t rows, int64_t k, int64_t element) {
  return Whole(view, view.k, k, view.row, rows, 16, element);
}
bool AlongRows(const ProductView& view, int64_t rows, int64_t k, int64_t bytes, int64_t element) {
  return Whole(view, view.row, rows, view.k, k, bytes, element);
}

hip::Access AccessOf(const ProductView& view, int64_t rows, int64_t k, int64_t tile, int64_t element) {
  if (AlongK(view, rows, k, element)) return hip::Access::kAlongK;
  return AlongRows(view, rows, k, tile / 32 * element, element) ? hip::Access::kAlongRows : hip::Access::kElements;
}

hip::ProductOperand OperandOf(const ProductView& view, hip::Access access) {
  hip::ProductOperand operand{view.data, view.row, view.k, {0, 0, 0}, static_cast<int>(access), 0};
  const size_t skip = 3 - view.batch.size();
  for (size_t d = 0; d < view.batch.size(); ++d) operand.batch[skip + d] = view.batch[d];
  return operand;
}

Status CheckOffsets(const char* name, const ProductView& view, int64_t rows, int64_t k, int64_t element) {
  const int64_t most = (std::min<int64_t>(rows, kMostTile) * view.row + std::min(k, kTileK) * view.k) * element;
  if (most <= kMostOffset && view.row <= kMostOffset && view.k <= kMostOffset) return {};
  return {ErrorCode::kUnsupported, std::string(name) + ": got strides " + std::to_string(view.row) + " and " +
                                       std::to_string(view.k) + " of rows and k, which no GPU kernel can address"};
}

// Bound of a tile's 128 k in clocks of a compute unit: its matrix instructions (product_mma.h), or 44 KB of loads per
// 1000 clocks, both operands.
double ClocksOf(int64_t tile, int64_t element) {
  const double fragments = static_cast<double>(tile / 32 * (tile / 32));
  const double matrix = fragments * 4 * (element == 4 ? 256 : 16);
  return std::max(matrix, static_cast<double>(2 * tile * 128 * element) / 44);
}

}  // namespace

bool Product::HasLargest(const Device& device, hip::Type type) {
  return type != hip::Type::kFloat && device.info().arch == "gfx950";
}

Status Product::Load(const std::shared_ptr<Device>& device, hip::Type type, Product* product) {
  product->type_ = type;
  product->compute_units_ = device->info().compute_units;
  product->largest_ = HasLargest(*device, type);
  for (size_t i = 0; i < product->kernels_.size(); ++i) {
    if (i == kTile256 && !product->largest_) continue;
    const std::string name = std::string("product_") + NameOf(type) + "_" + kNames[i];
    MXORT_RETURN_IF_ERROR(Kernel::Load(device, "product", name, &product->kernels_[i]));
  }
  return Kernel::Load(device, "product", "product_reduce", &product->reduce_);
}

// What a workgroup computes, and how.
struct Product::Shape {
  Kernels kernel = kTile64;
  int64_t rows = 64, columns = 64;
  int64_t k_granule = kTileK;  // that splits of K are multiples of
  int64_t most_groups = 0;     // with splits
  hip::Access a = hip::Access::kElements, b = hip::Access::kElements;
};

Product::Shape Product::ShapeOf(const ProductProblem& p, int64_t batches, Kernels only) const {
  const int64_t element = BytesOf(type_);
  Shape shape;
  shape.most_groups = 2 * int64_t{compute_units_};
  const bool along_k = AlongK(p.b, p.n, p.k, element);
  const bool few = p.m <= kSkinnyRows && (along_k || AlongRows(p.b, p.n, p.k, 16, element));
  if (few && (only == kKernels || only >= kSkinnyAlongK)) {
    shape.kernel = along_k ? kSkinnyAlongK : kSkinnyAlongRows;
    shape.b = along_k ? hip::Access::kAlongK : hip::Access::kAlongRows;
    shape.a = AlongK(p.a, p.m, p.k, element) ? hip::Access::kAlongK : hip::Access::kElements;
    shape.rows = kSkinnyRows, shape.columns = along_k ? 64 : 16 * (16 / element);
    shape.k_granule = kSkinnyStep, shape.most_groups *= 2;
    return shape;
  }
  const auto bound = [&](int64_t tile) {
    const int64_t groups = CeilDiv(p.m, tile) * CeilDiv(p.n, tile) * batches;
    return static_cast<double>(CeilDiv(groups, compute_units_)) * ClocksOf(tile, element);
  };
  int64_t side = 64;
  for (const auto [kernel, tile] : {std::pair(kTile128, 128), std::pair(kTile256, 256)}) {
    if (only == kKernels ? (kernel == kTile256 && !largest_) || bound(tile) >= bound(side) : kernel != only) continue;
    shape.kernel = kernel, side = tile;
  }
  shape.rows = shape.columns = side;
  shape.a = AccessOf(p.a, p.m, p.k, side, element);
  shape.b = AccessOf(p.b, p.n, p.k, side, element);
  return shape;
}

Status Product::Plan(const ProductProblem& problem, ProductLaunch* launch, Kernels only) const {
  *launch = {};
  const ProductProblem p = Merged(problem);
  int64_t batches = 1;
  for (const int64_t extent : p.batch) batches *= extent;
  if (batches == 0 || p.m == 0 || p.n == 0) return {};
  if (p.batch.size() > 3) return {ErrorCode::kUnsupported, "more than three batch dimensions that do not merge"};
  if (std::max({p.m, p.n, p.k}) > kMostOffset) return {ErrorCode::kUnsupported, "a dimension of more than 2^31 - 1"};
  const int64_t element = BytesOf(type_);
  MXORT_RETURN_IF_ERROR(CheckOffsets("A", p.a, p.m, p.k, element));
  MXORT_RETURN_IF_ERROR(CheckOffsets("B", p.b, p.n, p.k, element));

  const Shape shape = ShapeOf(p, batches, only);
  launch->kernel = shape.kernel;
  const int64_t tiles_m = CeilDiv(p.m, shape.rows), tiles_n = CeilDiv(p.n, shape.columns);
  const int64_t groups = tiles_m * tiles_n * batches;
  const int64_t elements = batches * p.m * p.n;
  if (groups > kMostGroups) {
    return {ErrorCode::kUnsupported, "a product of " + std::to_string(groups) + " tiles, expected less than 2^24"};
  }
  // Where the tiles leave compute units idle K is split, in pieces that are worth a pass over C.
  int64_t splits = std::clamp<int64_t>(std::min(shape.most_groups / groups, p.k / kSkinnyStep), 1, 64);
  if (elements > kMostOffset) splits = 1;
  const int64_t k_per_split = splits > 1 ? CeilDiv(CeilDiv(p.k, splits), shape.k_granule) * shape.k_granule : p.k;
  if (splits > 1) splits = CeilDiv(p.k, k_per_split);

  hip::ProductArgs& args = launch->args;
  args.a = OperandOf(p.a, shape.a);
  args.b = OperandOf(p.b, shape.b);
  args.bias = p.bias;
  args.c = p.c;
  args.bias_row = p.bias_row, args.bias_column = p.bias_column;
  const size_t dims = p.batch.size();
  args.batch1 = dims > 1 ? static_cast<unsigned>(p.batch[dims - 2]) : 1;
  args.batch2 = dims > 0 ? static_cast<unsigned>(p.batch[dims - 1]) : 1;
  args.batches = static_cast<unsigned>(batches);
  args.m = static_cast<unsigned>(p.m), args.n = static_cast<unsigned>(p.n), args.k = static_cast<unsigned>(p.k);
  args.k_per_split = static_cast<unsigned>(k_per_split), args.splits = static_cast<unsigned>(splits);
  args.tiles_m = static_cast<unsigned>(tiles_m), args.tiles_n = static_cast<unsigned>(tiles_n);
  args.alpha = p.alpha, args.beta = p.beta;
  launch->grid = {static_cast<unsigned>(groups), args.splits, 1};
  if (splits > 1) {
    launch->workspace_bytes = static_cast<size_t>(splits * elements) * sizeof(float);
    launch->reduce_grid = {static_cast<unsigned>(CeilDiv(elements, kThreads)), 1, 1};
  }
  return {};
}

Status Product::Launch(void* stream, const ProductLaunch& launch, void* workspace) const {
  hip::ProductArgs args = launch.args;
  args.partial = static_cast<float*>(workspace);
  MXORT_RETURN_IF_ERROR(kernels_[launch.kernel].Launch(launch.grid, kThreads, stream, &args));
  if (launch.reduce_grid.x == 0) return {};
  const unsigned elements = args.batches * args.m * args.n;
  hip::ProductReduceArgs reduce = {args.partial,     args.bias,  args.c,    args.bias_row,
                                   args.bias_column, elements,   args.m,    args.n,
                                   args.splits,      args.alpha, args.beta, static_cast<int>(type_)};
  return reduce_.Launch(launch.reduce_grid, kThreads, stream, &reduce);
}

}  // namespace mxort::device
