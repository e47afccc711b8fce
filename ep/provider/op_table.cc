#include "provider/op_table.h"

#include <algorithm>

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

const std::vector<OpRow>& OpTable() {
  static const Rows table = [] {
    Rows rows;
    AddConv(rows);
    AddDenseAttention(rows);
    AddExperts(rows);
    AddGatherMx(rows);
    AddGroupQueryAttention(rows);
    AddMatMulMx(rows);
    AddMovement(rows);
    AddNormalisations(rows);
    AddPointwise(rows);
    AddProducts(rows);
    AddRotaryEmbedding(rows);
    AddRows(rows);
    AddShapes(rows);
    return rows;
  }();
  return table;
}

}  // namespace mxort::provider
