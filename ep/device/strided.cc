#include "device/strided.h"

#include <algorithm>
#include <string>

namespace mxort::device {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 31;  // of a launch: indices of the device code have 32 bits
constexpr size_t kWidest = 16;                       // bytes a lane moves at once

template <size_t kOperands>
using Operands = std::array<Dims, kOperands>;

int64_t Product(const Dims& dims) {
  int64_t product = 1;
  for (const int64_t size : dims) product *= size;
  return product;
}

// Drops dimensions of size 1 and merges neighbours that every operand passes without a jump.
template <size_t kOperands>
void Merge(Dims* dims, Operands<kOperands>* strides) {
  Dims merged;
  Operands<kOperands> its;
  for (size_t d = 0; d < dims->size(); ++d) {
    if ((*dims)[d] == 1) continue;
    bool continues = !merged.empty();
    for (size_t o = 0; o < kOperands && continues; ++o) {
      continues = its[o].back() == (*strides)[o][d] * (*dims)[d];
    }
    if (continues) {
      merged.back() *= (*dims)[d];
    } else {
      merged.push_back((*dims)[d]);
    }
    for (size_t o = 0; o < kOperands; ++o) {
      if (continues) {
        its[o].back() = (*strides)[o][d];
      } else {
        its[o].push_back((*strides)[o][d]);
      }
    }
  }
  if (merged.empty()) {
    merged = {1};
    for (Dims& s : its) s = {0};
  }
  *dims = merged;
  *strides = its;
}

template <size_t kOperands>
Status Fill(const Dims& dims, const Operands<kOperands>& strides, hip::Strides<static_cast<int>(kOperands)>* shape) {
  if (dims.size() > hip::kMostDims) {
    return {ErrorCode::kUnsupported, "a view of " + std::to_string(dims.size()) + " dimensions, expected at most " +
                                         std::to_string(hip::kMostDims)};
  }
  shape->rank = static_cast<unsigned>(dims.size());
  for (size_t d = 0; d < dims.size(); ++d) {
    shape->dims[d] = static_cast<unsigned>(dims[d]);
    for (size_t o = 0; o < kOperands; ++o) shape->strides[o][d] = strides[o][d];
  }
  return {};
}

hip::Grid GridOf(int64_t count) {
  return {static_cast<unsigned>((count + hip::kStridedElements - 1) / hip::kStridedElements), 1, 1};
}

// Calls launch(shape, count, offsets of the operands) for parts of the tensor that 32 bits can index.
template <size_t kOperands, class Launch>
Status InParts(Dims dims, Operands<kOperands> strides, const Launch& launch) {
  if (Product(dims) == 0) return {};
  Merge(&dims, &strides);
  const int64_t outer = dims[0], inner = Product(dims) / outer;
  if (inner > kMostElements) return {ErrorCode::kUnsupported, "a view of more than 2^31 elements in its inner axes"};
  const int64_t step = std::max<int64_t>(1, kMostElements / inner);
  for (int64_t begin = 0; begin < outer; begin += step) {
    dims[0] = std::min(step, outer - begin);
    hip::Strides<static_cast<int>(kOperands)> shape{};
    MXORT_RETURN_IF_ERROR(Fill(dims, strides, &shape));
    std::array<int64_t, kOperands> offsets;
    for (size_t o = 0; o < kOperands; ++o) offsets[o] = begin * strides[o][0];
    MXORT_RETURN_IF_ERROR(launch(shape, dims[0] * inner, offsets));
  }
  return {};
}

const void* Advanced(const void* p, int64_t elements, size_t bytes) {
  return p ? static_cast<const char*>(p) + elements * static_cast<int64_t>(bytes) : nullptr;
}
void* Advanced(void* p, int64_t elements, size_t bytes) {
  return static_cast<char*>(p) + elements * static_cast<int64_t>(bytes);
}

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

Status Pointwise::Load(const std::shared_ptr<Device>& device, hip::Function function, bool whole, float a, float b,
                       Pointwise* pointwise) {
  pointwise->args_.function = static_cast<int>(function);
  pointwise->args_.a = a;
  pointwise->args_.b = b;
  return Kernel::Load(device, "strided", whole ? "pointwise_int" : "pointwise_float", &pointwise->kernel_);
}

Status Pointwise::Launch(void* stream, const std::array<Operand, 3>& in, void* out, hip::Type out_type,
                         const Dims& dims) const {
  Operands<4> strides;
  for (size_t i = 0; i < in.size(); ++i) {
    strides[i] = in[i].data ? BroadcastStrides(in[i].dims, dims) : Dims(dims.size(), 0);
    if (strides[i].size() != dims.size()) {
      return {ErrorCode::kInvalidArgument, "input " + std::to_string(i) + ": its shape cannot be broadcast"};
    }
  }
  strides[3] = ContiguousStrides(dims);
  return InParts(dims, strides, [&](const hip::Strides<4>& shape, int64_t count, const std::array<int64_t, 4>& at) {
    hip::PointwiseArgs args = args_;
    args.shape = shape;
    args.count = static_cast<unsigned long long>(count);
    for (size_t i = 0; i < in.size(); ++i) {
      args.in[i] = Advanced(in[i].data, at[i], BytesOf(in[i].type));
      args.in_types[i] = static_cast<int>(in[i].type);
    }
    args.out = Advanced(out, at[3], BytesOf(out_type));
    args.out_type = static_cast<int>(out_type);
    return kernel_.Launch(GridOf(count), hip::kStridedThreads, stream, &args);
  });
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
