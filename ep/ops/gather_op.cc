// Compiled against the headers of ONNX Runtime 1.21 too, like custom_op.cc.
#include "ops/gather_op.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "kernels/float16.h"
#include "kernels/kernel.h"
#include "mx_formats.h"
#include "ops/custom_op_base.h"
#include "ops/matmul_spec.h"
#include "ops/ort_status.h"
#include "ops/spec.h"

namespace mxort {
namespace {

constexpr int64_t kTaskElements = 1 << 14;  // what makes handing work to another thread worth it

enum GatherInput { kIndices, kTable, kTableScale, kMultiplier, kGatherInputs };

// Row of a table, [blocks * PackedBytes] codes and [blocks] scales, as float [k]: (element * scale) * multiplier, each
// in float.
template <class F>
void DecodeRow(const uint8_t* codes, const uint8_t* scales, float multiplier, int64_t k, float* row) {
  static const auto kValues = [] {
    std::array<float, size_t{1} << CodeBits<F>()> values{};
    for (size_t code = 0; code < values.size(); ++code) values[code] = DecodeElement<F>(static_cast<uint8_t>(code));
    return values;
  }();
  for (int64_t start = 0; start < k; start += kBlockSize, codes += PackedBytes<F>(), ++scales) {
    uint8_t block[kBlockSize];
    UnpackBlock<F>(codes, block);
    const float scale = DecodeScale(*scales);
    const int64_t count = std::min<int64_t>(kBlockSize, k - start);
    for (int64_t i = 0; i < count; ++i) row[start + i] = kValues[block[i]] * scale * multiplier;
  }
}

class GatherKernel {
 public:
  GatherKernel(const GatherOp& op, const OrtKernelInfo* info)
      : api_(*op.api),
        wide_(op.index_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
        type_(op.row_type.type),
        where_(Where(op, info)),
        format_(FormatOf(*op.what, KernelAttributes(api_, info))),
        k_(KernelAttributes(api_, info).Required("K")) {
    CheckDimension("K", k_);
  }

  static std::string Where(const GatherOp& op, const OrtKernelInfo* info) {
    return op.what->name + " '" + NodeName(*op.api, info) + "'";
  }

  const std::string& where() const { return where_; }
  const OrtApi& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    std::array<Tensor, kGatherInputs> inputs;
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = ReadTensor(api_, InputValue(api_, context, i));
    const int64_t blocks = BlocksOf(k_), row_bytes = blocks * BlockBytes(format_);
    const int64_t rows = inputs[kTable].shape.empty() ? 0 : inputs[kTable].shape[0];
    CheckShape("B", inputs[kTable].shape, {rows, row_bytes});
    CheckShape("B_scale", inputs[kTableScale].shape, {rows, blocks});
    CheckShape("multiplier", inputs[kMultiplier].shape, {rows});
    int64_t count = 1;
    for (const int64_t d : inputs[kIndices].shape) count *= d;
    for (int64_t i = 0; i < count; ++i) {
      if (const int64_t index = Index(inputs[kIndices], i); index < -rows || index >= rows) {
        Fail("index " + std::to_string(i), std::to_string(index),
             std::to_string(-rows) + " to " + std::to_string(rows - 1));
      }
    }
    Shape shape = inputs[kIndices].shape;
    shape.push_back(k_);
    OrtValue* y = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &y));
    if (count == 0) return;
    void* data = nullptr;
    Check(api_, api_.GetTensorMutableData(y, &data));
    const int64_t per_task = std::max<int64_t>(1, kTaskElements / k_);
    Parallel(api_, context, (count + per_task - 1) / per_task, [&](int64_t task) {
      std::vector<float> decoded(static_cast<size_t>(type_ == DataType::kFloat ? 0 : k_));
      for (int64_t i = task * per_task; i < std::min(count, (task + 1) * per_task); ++i) {
        const int64_t index = Index(inputs[kIndices], i), row = index < 0 ? index + rows : index;
        const uint8_t* codes = static_cast<const uint8_t*>(inputs[kTable].data) + row * row_bytes;
        const uint8_t* scales = static_cast<const uint8_t*>(inputs[kTableScale].data) + row * blocks;
        const float multiplier = LoadAs(type_, inputs[kMultiplier].data, row);
        float* out = decoded.empty() ? static_cast<float*>(data) + i * k_ : decoded.data();
        WithElement(format_, [&](auto element) { DecodeRow<decltype(element)>(codes, scales, multiplier, k_, out); });
        for (size_t c = 0; c < decoded.size(); ++c) StoreAs(type_, data, i * k_ + static_cast<int64_t>(c), decoded[c]);
      }
    });
  }

 private:
  int64_t Index(const Tensor& indices, int64_t i) const {
    return wide_ ? static_cast<const int64_t*>(indices.data)[i] : static_cast<const int32_t*>(indices.data)[i];
  }

  const OrtApi& api_;
  const bool wide_;
  const DataType type_;
  const std::string where_;
  const WeightFormat format_;
  const int64_t k_;
};

const GatherOp& Self(const OrtCustomOp* op) { return *static_cast<const GatherOp*>(op); }

GatherOp MakeOp(const OrtApi* api, uint32_t version, const WeightOperator& what, ONNXTensorElementDataType index_type,
                const ElementType& row_type) {
  GatherOp op{};
  static_cast<OrtCustomOp&>(op) = BasicOp(version);
  op.api = api;
  op.what = &what;
  op.index_type = index_type;
  op.row_type = row_type;
  op.GetName = [](const OrtCustomOp* self) { return Self(self).what->name.c_str(); };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kGatherInputs; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    if (index == kIndices) return Self(self).index_type;
    return index == kMultiplier ? Self(self).row_type.onnx : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).row_type.onnx; };
  op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
    return Guard(*Self(self).api, Self(self).what->name,
                 [&] { InferLastDimension(*Self(self).api, context, "K", false, kMultiplier); });
  };
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatusPtr {
    return Guard(*Self(self).api, GatherKernel::Where(Self(self), info),
                 [&] { *kernel = new GatherKernel(Self(self), info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    const auto& self = *static_cast<const GatherKernel*>(kernel);
    return Guard(self.api(), self.where(), [&] { self.Compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<GatherKernel*>(kernel); };
  return op;
}

}  // namespace

std::vector<GatherOp> GatherOps(const OrtApi* api, uint32_t version) {
  std::vector<GatherOp> ops;
  for (const WeightOperator& what : GatherOperators()) {
    for (const auto index_type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32}) {
      for (const ElementType& type : kElementTypes) ops.push_back(MakeOp(api, version, what, index_type, type));
    }
  }
  return ops;
}

}  // namespace mxort
