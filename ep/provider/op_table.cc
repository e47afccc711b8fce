#include "provider/op_table.h"

#include <algorithm>

#include "device/tensor_check.h"

namespace mxort::provider {

const Types& FloatTypes() {
  static const Types types = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                              ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};
  return types;
}

const Types& NumberTypes() {
  static const Types types = [] {
    Types all = FloatTypes();
    all.insert(all.end(), {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
                           ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8});
    return all;
  }();
  return types;
}

const Types& AllTypes() {
  static const Types types = [] {
    Types all = NumberTypes();
    all.push_back(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL);
    return all;
  }();
  return types;
}

bool OpRow::OnHost(const std::vector<size_t>& which, size_t index) {
  return std::find(which.begin(), which.end(), index) != which.end();
}

namespace {

// The operators of a file, and the kernels of those that do not say themselves.
struct Part {
  void (*add)(Rows& rows);
  unsigned kernels;
};
constexpr Part kParts[] = {
    {AddConv, device::kProductKernels | device::kPatchesKernels},
    {AddDenseAttention, device::kAttentionKernels},
    {AddExperts, 0},
    {AddGatherMx, device::kGatherMxKernels},
    {AddGroupQueryAttention, device::kAttentionKernels},
    {AddMatMulMx, device::kActivateKernels},
    {AddMovement, device::kCopyKernels | device::kGatherKernels | device::kPointwiseKernels},
    {AddNormalisations, device::kNormKernels},
    {AddPointwise, device::kPointwiseKernels},
    {AddProducts, device::kProductKernels},
    {AddRotaryEmbedding, device::kAttentionKernels},
    {AddRows, device::kRowKernels | device::kCopyKernels},
    {AddShapes, 0},
};

}  // namespace

const std::vector<OpRow>& OpTable() {
  static const Rows table = [] {
    Rows rows;
    for (const Part& part : kParts) {
      const size_t first = rows.size();
      part.add(rows);
      for (size_t i = first; i < rows.size(); ++i) {
        if (rows[i].kernels == 0) rows[i].kernels = part.kernels;
      }
    }
    return rows;
  }();
  return table;
}

}  // namespace mxort::provider
