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
#include "ops/ort_status.h"
#include "ops/spec.h"

namespace mxort {
namespace {

constexpr const char* kGatherName = "GatherMXFP4";
constexpr int64_t kTaskElements = 1 << 14;  // what makes handing work to another thread worth it

enum GatherInput { kIndices, kTable, kTableScale, kMultiplier, kGatherInputs };

// Row of a table, [blocks * 16] codes and [blocks] scales, as float [k]: (element * scale) * multiplier, each in float.
void DecodeRow(const uint8_t* codes, const uint8_t* scales, float multiplier, int64_t k, float* row) {
  static const auto kValues = [] {
    std::array<float, 16> values{};
    for (unsigned char code = 0; code < values.size(); ++code) values[code] = DecodeElement<E2M1>(code);
    return values;
  }();
  for (int64_t start = 0; start < k; start += kBlockSize) {
    const float scale = DecodeScale(scales[start / kBlockSize]);
    const int64_t stop = std::min<int64_t>(start + kBlockSize, k);
    for (int64_t i = start; i < stop; ++i) {
      const unsigned nibble = (codes[i / 2] >> (4 * (i % 2))) & 0xFu;
      row[i] = kValues[nibble] * scale * multiplier;
    }
  }
}

class GatherKernel {
 public:
  GatherKernel(const GatherOp& op, const OrtKernelInfo* info)
      : api_(*op.api),
        wide_(op.index_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
        type_(op.row_type.type),
        where_(Where(op, info)),
        k_(KernelAttributes(api_, info).Required("K")) {
    CheckDimension("K", k_);
  }

  static std::string Where(const GatherOp& op, const OrtKernelInfo* info) {
    return std::string(kGatherName) + " '" + NodeName(*op.api, info) + "'";
  }

  const std::string& where() const { return where_; }
  const OrtApi& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    std::array<Tensor, kGatherInputs> inputs;
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = ReadTensor(api_, InputValue(api_, context, i));
    const int64_t blocks = BlocksOf(k_), rows = inputs[kTable].shape.empty() ? 0 : inputs[kTable].shape[0];
    CheckShape("B", inputs[kTable].shape, {rows, blocks * kPackedBlockBytes});
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
        DecodeRow(static_cast<const uint8_t*>(inputs[kTable].data) + row * blocks * kPackedBlockBytes,
                  static_cast<const uint8_t*>(inputs[kTableScale].data) + row * blocks,
                  LoadAs(type_, inputs[kMultiplier].data, row), k_,
                  decoded.empty() ? static_cast<float*>(data) + i * k_ : decoded.data());
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
  const int64_t k_;
};

const GatherOp& Self(const OrtCustomOp* op) { return *static_cast<const GatherOp*>(op); }

GatherOp MakeOp(const OrtApi* api, uint32_t version, ONNXTensorElementDataType index_type,
                const ElementType& row_type) {
  GatherOp op{};
  static_cast<OrtCustomOp&>(op) = BasicOp(version);
  op.api = api;
  op.index_type = index_type;
  op.row_type = row_type;
  op.GetName = [](const OrtCustomOp*) { return kGatherName; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kGatherInputs; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    if (index == kIndices) return Self(self).index_type;
    return index == kMultiplier ? Self(self).row_type.onnx : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).row_type.onnx; };
  op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
    return Guard(*Self(self).api, kGatherName,
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
  for (const auto index_type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32}) {
    for (const ElementType& row_type : kElementTypes) ops.push_back(MakeOp(api, version, index_type, row_type));
  }
  return ops;
}

}  // namespace mxort
