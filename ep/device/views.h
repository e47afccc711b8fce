// How launches over views of tensors are put together: dimensions merged, tensors of more elements than 32 bits index
// in parts. Of strided.cc and pointwise.cc.
#ifndef MXORT_DEVICE_VIEWS_H_
#define MXORT_DEVICE_VIEWS_H_

#include <algorithm>
#include <array>
#include <string>

#include "device/strided.h"

namespace mxort::device {

inline constexpr int64_t kMostElements = int64_t{1} << 31;  // of a launch: indices of the device code have 32 bits

template <size_t kOperands>
using Operands = std::array<Dims, kOperands>;

inline int64_t Product(const Dims& dims) {
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

inline hip::Grid GridOf(int64_t count) {
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

inline const void* Advanced(const void* p, int64_t elements, size_t bytes) {
  return p ? static_cast<const char*>(p) + elements * static_cast<int64_t>(bytes) : nullptr;
}
inline void* Advanced(void* p, int64_t elements, size_t bytes) {
  return static_cast<char*>(p) + elements * static_cast<int64_t>(bytes);
}

}  // namespace mxort::device

#endif  // MXORT_DEVICE_VIEWS_H_
