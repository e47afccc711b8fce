#include "device/strided.h"

#include <algorithm>
#include <string>

#include "device/views.h"

namespace mxort::device {
namespace {

constexpr size_t kWidest = 16;  // bytes a lane moves at once

// Takes several elements for one where all operands have them next to each other. `moves`: which operands do; the
// others (indices) stand still over the innermost dimension.
template <size_t kOperands>
size_t Widen(Dims* dims, Operands<kOperands>* strides, const std::array<bool, kOperands>& moves,
             const std::array<const void*, kOperands>& data, size_t bytes) {
  Merge(dims, strides);
  while (bytes < kWidest && dims->back() % 2 == 0) {
    for (size_t o = 0; o < kOperands; ++o) {
      const Dims& s = (*strides)[o];
      if (s.back() != (moves[o] ? 1 : 0)) return bytes;
      if (!moves[o]) continue;
      if (reinterpret_cast<uintptr_t>(data[o]) % (2 * bytes) != 0) return bytes;
      if (std::any_of(s.begin(), s.end() - 1, [](int64_t stride) { return stride % 2 != 0; })) return bytes;
    }
    dims->back() /= 2;
    for (size_t o = 0; o < kOperands; ++o) {
      if (!moves[o]) continue;
      for (size_t d = 0; d + 1 < dims->size(); ++d) (*strides)[o][d] /= 2;
    }
    bytes *= 2;
  }
  return bytes;
}

size_t IndexOfWidth(size_t bytes) {
  size_t index = 0;
  while ((size_t{1} << index) < bytes) ++index;
  return index;
}

Status LoadWidths(const std::shared_ptr<Device>& device, const char* name, std::array<Kernel, 5>* kernels) {
  for (size_t i = 0; i < kernels->size(); ++i) {
    MXORT_RETURN_IF_ERROR(Kernel::Load(device, "strided", std::string(name) + std::to_string(1 << i), &(*kernels)[i]));
  }
  return {};
}

}  // namespace

size_t BytesOf(hip::Type type) {
  switch (type) {
    case hip::Type::kInt64:
      return 8;
    case hip::Type::kFloat:
    case hip::Type::kInt32:
      return 4;
    case hip::Type::kFloat16:
    case hip::Type::kBFloat16:
      return 2;
    default:
      return 1;
  }
}

Dims ContiguousStrides(const Dims& dims) {
  Dims strides(dims.size());
  int64_t stride = 1;
  for (size_t d = dims.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= dims[d];
  }
  return strides;
}

Dims BroadcastStrides(const Dims& dims, const Dims& to) {
  if (dims.size() > to.size()) return {};
  const Dims own = ContiguousStrides(dims);
  Dims strides(to.size(), 0);
  const size_t more = to.size() - dims.size();
  for (size_t d = 0; d < dims.size(); ++d) {
    if (dims[d] != to[more + d] && dims[d] != 1) return {};
    strides[more + d] = dims[d] == 1 ? 0 : own[d];
  }
  return strides;
}

bool Broadcast(const Dims& a, const Dims& b, Dims* both) {
  const size_t rank = std::max(a.size(), b.size());
  Dims out(rank, 1);
  for (size_t i = 0; i < rank; ++i) {
    const int64_t x = i < a.size() ? a[a.size() - 1 - i] : 1, y = i < b.size() ? b[b.size() - 1 - i] : 1;
    if (x != y && x != 1 && y != 1) return false;
    out[rank - 1 - i] = x == 1 ? y : x;
  }
  *both = out;
  return true;
}

Status Copier::Load(const std::shared_ptr<Device>& device, Copier* copier) {
  return LoadWidths(device, "copy_", &copier->kernels_);
}

Status Copier::Launch(void* stream, const View& in, void* out, const Dims& out_strides, const Dims& dims,
                      size_t bytes) const {
  if (Product(dims) == 0) return {};
  Dims merged = dims;
  Operands<2> strides = {in.strides, out_strides};
  const size_t width = Widen<2>(&merged, &strides, {true, true}, {in.data, out}, bytes);
  return InParts(merged, strides, [&](const hip::Strides<2>& shape, int64_t count, const std::array<int64_t, 2>& at) {
    const hip::CopyArgs args = {shape, Advanced(in.data, at[0], width), Advanced(out, at[1], width),
                                static_cast<unsigned long long>(count)};
    return kernels_[IndexOfWidth(width)].Launch(GridOf(count), hip::kStridedThreads, stream, &args);
  });
}

Status Gatherer::Load(const std::shared_ptr<Device>& device, Gatherer* gatherer) {
  return LoadWidths(device, "gather_", &gatherer->kernels_);
}

Status Gatherer::Launch(void* stream, const View& data, const View& indices, hip::Type index_type,
                        const std::vector<Axis>& axes, void* out, const Dims& dims, size_t bytes) const {
  if (Product(dims) == 0) return {};
  if (axes.size() > hip::kMostDims) return {ErrorCode::kUnsupported, "indices along more than 8 axes"};
  Dims merged = dims;
  Operands<3> strides = {data.strides, indices.strides, ContiguousStrides(dims)};
  size_t width = bytes;
  const bool even = std::all_of(axes.begin(), axes.end(), [&](const Axis& axis) {
    return axis.stride % static_cast<int64_t>(kWidest / bytes) == 0;
  });
  if (even) width = Widen<3>(&merged, &strides, {true, false, true}, {data.data, nullptr, out}, bytes);
  const auto wider = static_cast<int64_t>(width / bytes);
  return InParts(merged, strides, [&](const hip::Strides<3>& shape, int64_t count, const std::array<int64_t, 3>& at) {
    hip::GatherArgs args{};
    args.shape = shape;
    args.data = Advanced(data.data, at[0], width);
    args.indices = Advanced(indices.data, at[1], BytesOf(index_type));
    args.out = Advanced(out, at[2], width);
    args.count = static_cast<unsigned long long>(count);
    args.axes = static_cast<unsigned>(axes.size());
    args.index_type = static_cast<int>(index_type);
    for (size_t q = 0; q < axes.size(); ++q) {
      args.sizes[q] = axes[q].size;
      args.strides[q] = axes[q].stride / wider;
    }
    return kernels_[IndexOfWidth(width)].Launch(GridOf(count), hip::kStridedThreads, stream, &args);
  });
}

}  // namespace mxort::device
