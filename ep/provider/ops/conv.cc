// Convolutions of one or two dimensions as products: weights [out channels, k] times patches [k, points] of every
// image. A window of one point is the image itself; others are gathered into patches first.
#include <algorithm>
#include <array>

#include "device/product.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

constexpr int64_t kMostPatchBytes = int64_t{1} << 28;  // at once

// What an image, a window and the attributes come to; height 1 where there is one dimension.
struct Geometry {
  int64_t batches, channels, out_channels;
  std::array<int64_t, 2> size{1, 1}, window{1, 1}, output{1, 1}, stride{1, 1}, dilation{1, 1}, pad{0, 0}, pad_end{0, 0};

  int64_t Points() const { return output[0] * output[1]; }
  int64_t K() const { return channels * window[0] * window[1]; }
  // Whether the patches are the images as they lie.
  bool Plain() const {
    constexpr std::array<int64_t, 2> kOne{1, 1}, kZero{0, 0};
    return window == kOne && stride == kOne && pad == kZero && pad_end == kZero;
  }
};

class Conv : public NodeKernel {
 public:
  explicit Conv(const NodeInfo& node)
      : NodeKernel(node),
        auto_pad_(node.String("auto_pad", "NOTSET")),
        strides_(node.Ints("strides")),
        dilations_(node.Ints("dilations")),
        pads_(node.Ints("pads")),
        patches_(Load("product", BytesOf(node.InputType(0)) == 4 ? "patches_4" : "patches_2")) {
    Check(device::Product::Load(ep().device(), DeviceType(node.InputType(0)), &product_));
  }

 private:
  Geometry Measure(const Shape& x, const Shape& w) const {
    const size_t rank = x.size();
    if (w.size() != rank || rank < 3 || rank > 4 || w[1] != x[1]) {
      Fail("inputs", "shapes " + Text(x) + " and " + Text(w), "images and windows of one or two dimensions");
    }
    Geometry g{x[0], x[1], w[0]};
    const size_t dims = rank - 2;
    for (size_t d = 0; d < dims; ++d) {
      const size_t to = 2 - dims + d;
      g.size[to] = x[2 + d], g.window[to] = w[2 + d];
      if (!strides_.empty()) g.stride[to] = strides_.at(d);
      if (!dilations_.empty()) g.dilation[to] = dilations_.at(d);
      const int64_t span = (g.window[to] - 1) * g.dilation[to] + 1;
      if (auto_pad_ == "SAME_UPPER" || auto_pad_ == "SAME_LOWER") {
        const int64_t out = (g.size[to] + g.stride[to] - 1) / g.stride[to];
        const int64_t all = std::max<int64_t>(0, (out - 1) * g.stride[to] + span - g.size[to]);
        g.pad[to] = auto_pad_ == "SAME_UPPER" ? all / 2 : all - all / 2;
        g.pad_end[to] = all - g.pad[to];
      } else if (!pads_.empty() && auto_pad_ == "NOTSET") {
        g.pad[to] = pads_.at(d), g.pad_end[to] = pads_.at(dims + d);
      }
      const int64_t room = g.size[to] + g.pad[to] + g.pad_end[to] - span;
      if (room < 0) Fail("input W", "shape " + Text(w), "a window no larger than the image " + Text(x));
      g.output[to] = room / g.stride[to] + 1;
    }
    return g;
  }

  void Run(NodeCall& call) override {
    const Tensor x = call.Input(0), w = call.Input(1);
    const Geometry g = Measure(x.shape, w.shape);
    Shape shape = {g.batches, g.out_channels};
    if (x.shape.size() == 4) shape.push_back(g.output[0]);
    shape.push_back(g.output[1]);
    const Tensor y = call.Output(0, shape);
    if (!y.data) return;
    device::ProductProblem problem;
    problem.m = g.out_channels, problem.n = g.Points(), problem.k = g.K();
    problem.a = {w.data, g.K(), 1, {0}};
    problem.b = {nullptr, 1, g.Points(), {g.K() * g.Points()}};
    if (call.Has(2)) problem.bias = call.Input(2).data, problem.bias_row = 1;
    const auto bytes = static_cast<int64_t>(BytesOf(x.type));
    const int64_t image = g.channels * g.size[0] * g.size[1] * bytes, patches = g.K() * g.Points() * bytes;
    const int64_t fit = std::clamp<int64_t>(kMostPatchBytes / std::max<int64_t>(patches, 1), 1, 65535);
    const int64_t at_once = g.Plain() ? g.batches : fit;
    if (!g.Plain() && g.K() * g.Points() > kMostElements) Fail("input X", "shape " + Text(x.shape), "smaller images");
    for (int64_t batch = 0; batch < g.batches; batch += at_once) {
      const int64_t count = std::min(at_once, g.batches - batch);
      problem.batch = {count};
      problem.c = static_cast<char*>(y.data) + batch * g.out_channels * g.Points() * bytes;
      Launch(call, g, problem, static_cast<const char*>(x.data) + batch * image,
             g.Plain() ? 0 : static_cast<size_t>(count * patches));
    }
  }

  // The products of some images whose first is `images`, by way of so many bytes of patches.
  void Launch(NodeCall& call, const Geometry& g, device::ProductProblem problem, const void* images,
              size_t patch_bytes) const {
    device::ProductLaunch launch;
    problem.b.data = patch_bytes == 0 ? images : nullptr;  // patches are aligned as null is
    Check(product_.Plan(problem, &launch));
    const size_t front = device::Aligned(launch.workspace_bytes);
    auto* memory = static_cast<char*>(call.Workspace(front + patch_bytes));
    if (patch_bytes != 0) {
      Gather(call, g, images, memory + front, problem.batch[0]);
      launch.args.b.data = memory + front;
    }
    Check(product_.Launch(call.stream(), launch, memory));
  }

  void Gather(const NodeCall& call, const Geometry& g, const void* images, void* columns, int64_t batches) const {
    hip::PatchesArgs args{};
    args.x = images;
    args.columns = columns;
    args.channels = static_cast<unsigned>(g.channels);
    for (size_t d = 0; d < 2; ++d) {
      args.size[d] = static_cast<unsigned>(g.size[d]), args.window[d] = static_cast<unsigned>(g.window[d]);
      args.output[d] = static_cast<unsigned>(g.output[d]), args.stride[d] = static_cast<unsigned>(g.stride[d]);
      args.pad[d] = static_cast<unsigned>(g.pad[d]), args.dilation[d] = static_cast<unsigned>(g.dilation[d]);
    }
    args.elements = static_cast<unsigned>(g.K() * g.Points());
    const hip::Grid grid = {(args.elements + 255) / 256, static_cast<unsigned>(batches), 1};
    Check(patches_.Launch(grid, 256, call.stream(), &args));
  }

  static constexpr int64_t kMostElements = (int64_t{1} << 31) - 1;
  const std::string auto_pad_;
  const std::vector<int64_t> strides_, dilations_, pads_;
  const device::Kernel patches_;
  device::Product product_;
};

std::string WhyLeft(const Ep&, const NodeView& node) {
  if (const int64_t group = node.IntOr("group", 1); group != 1) return "it has " + std::to_string(group) + " groups";
  const size_t rank = node.InputShape(1).size();
  if (rank == 3 || rank == 4) return "";
  return rank == 0 ? "the rank of W is not known" : "it has " + std::to_string(rank - 2) + " dimensions";
}

}  // namespace

void AddConv(Rows& rows) { rows.push_back({"", "Conv", 1, kNewest, {{"T", FloatTypes()}}, Create<Conv>, WhyLeft}); }

}  // namespace mxort::provider
