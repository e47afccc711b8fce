// Compiled against the headers of ONNX Runtime 1.21 too, like custom_op.cc.
#include "ops/experts_op.h"

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "kernels/activation.h"
#include "kernels/experts.h"
#include "kernels/kernel_table.h"
#include "kernels/vector_functions.h"
#include "kernels/weight_memory.h"
#include "ops/custom_op_base.h"
#include "ops/experts_inputs.h"
#include "ops/matmul_inputs.h"
#include "ops/ort_status.h"

namespace mxort {
namespace {

class ExpertsKernel {
 public:
  ExpertsKernel(const ExpertsOp& op, const OrtKernelInfo* info)
      : api_(*op.api),
        type_(op.type),
        where_(Where(op, info)),
        attributes_(KernelAttributes(api_, info)),
        kernels_(SelectKernels(attributes_.product(), DetectCpu(), KernelOverride())) {
    activate_ = SelectFunctions(DetectCpu(), KernelOverride()).activate;
    constants_ = ReadExpertsConstants(api_, info);
    PackConstants();
  }

  static std::string Where(const ExpertsOp& op, const OrtKernelInfo* info) {
    return std::string(kExpertsName) + " '" + NodeName(*op.api, info) + "'";
  }
  const std::string& where() const { return where_; }
  const OrtApi& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    const Tensor x = ReadTensor(api_, InputValue(api_, context, kX));
    const Tensor router = ReadTensor(api_, InputValue(api_, context, kRouter));
    OrtValue* value = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context, 0, x.shape.data(), x.shape.size(), &value));
    void* y = nullptr;
    Check(api_, api_.GetTensorMutableData(value, &y));
    ExpertsTensors tensors = constants_;
    ReadExpertsInputs(api_, context, &tensors);
    const ExpertsSpec spec = attributes_.SpecOf(ShapesOf(tensors));
    const int64_t rows = CheckExpertsRows(spec, x.shape, router.shape);
    if (rows == 0) return;
    const ParallelFor parallel = [&](int64_t tasks, const std::function<void(int64_t)>& body) {
      Parallel(api_, context, tasks, body);
    };
    std::vector<float> widened[kProducts][2];
    std::shared_ptr<const PackedWeights> made[kProducts];
    MatMulOperand operands[kProducts];
    const MatMulSpec* specs[kProducts] = {&spec.first, &spec.second};
    for (size_t i = 0; i < kProducts; ++i) {
      const std::array<Tensor, kParts>& product = tensors[i];
      std::shared_ptr<const PackedWeights> packed = packed_[i];
      if (!packed && !lazy_) {
        packed = made[i] =
            std::make_shared<PackedWeights>(*specs[i], *kernels_[0]->layout, WeightsOf(product), parallel);
      }
      operands[i] = {packed.get(), WeightsOf(product), Widened(kColumnScale, product[kColumnScales], &widened[i][0]),
                     Widened(kBias, product[kBiases], &widened[i][1])};
    }
    Experts({&spec, &kernels_, activate_, operands[0], operands[1], lazy_.get(), type_.a.type, rows, x.data,
             router.data, y},
            parallel);
  }

 private:
  // Both products are packed where their codes and scales are constant: what follows from the shapes is known then.
  void PackConstants() {
    for (const auto& product : constants_) {
      if (!product[kCodes].data || !product[kScales].data) return;
    }
    const ExpertsSpec spec = attributes_.SpecOf(ShapesOf(constants_));
    const MatMulSpec* specs[kProducts] = {&spec.first, &spec.second};
    if (const std::optional<size_t> limit = LazyExperts::LimitOfEnvironment()) {
      lazy_ = std::make_unique<LazyExperts>(
          std::array<LazyExperts::Product, LazyExperts::kProducts>{
              {{spec.first, WeightsOf(constants_[0])}, {spec.second, WeightsOf(constants_[1])}}},
          *kernels_[0]->layout, spec.experts, *limit);
      return;
    }
    for (size_t i = 0; i < kProducts; ++i) {
      const std::array<Tensor, kParts>& product = constants_[i];
      packed_[i] = SharedPackedWeights(*specs[i], *kernels_[0]->layout, WeightsOf(product));
      const int64_t blocks = specs[i]->N * BlocksOf(specs[i]->K);
      DropFilePages(product[kCodes].data, static_cast<size_t>(blocks * kPackedBlockBytes));
      DropFilePages(product[kScales].data, static_cast<size_t>(blocks));
    }
  }

  const OrtApi& api_;
  const NodeType type_;
  const std::string where_;
  const ExpertsAttributes attributes_;
  const Kernels kernels_;
  Activate activate_;
  ExpertsTensors constants_;
  std::shared_ptr<const PackedWeights> packed_[kProducts];  // null: not constant, or
  std::unique_ptr<LazyExperts> lazy_;
};

const ExpertsOp& Self(const OrtCustomOp* op) { return *static_cast<const ExpertsOp*>(op); }

ExpertsOp MakeOp(const OrtApi* api, uint32_t version, const NodeType& type) {
  ExpertsOp op{};
  static_cast<OrtCustomOp&>(op) = BasicOp(version);
  op.api = api;
  op.type = type;
  op.GetName = [](const OrtCustomOp*) { return kExpertsName; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kExpertsInputs; };
  op.GetInputType = [](const OrtCustomOp* self, size_t index) {
    if (index < kWeights) return Self(self).type.a.onnx;
    const size_t part = (index - kWeights) % kParts;
    return part == kCodes || part == kScales ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : Self(self).type.vectors;
  };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Self(self).type.a.onnx; };
  op.InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
    const OrtApi& ort = *Self(self).api;
    return Guard(ort, kExpertsName, [&] {
      const Dimensions y = InputDimensions(ort, context, kX);
      if (!y.sizes.empty()) SetOutputDimensions(ort, context, 0, y);
    });
  };
  op.CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) -> OrtStatusPtr {
    return Guard(*Self(self).api, ExpertsKernel::Where(Self(self), info),
                 [&] { *kernel = new ExpertsKernel(Self(self), info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    const auto& self = *static_cast<const ExpertsKernel*>(kernel);
    return Guard(self.api(), self.where(), [&] { self.Compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<ExpertsKernel*>(kernel); };
  return op;
}

}  // namespace

std::vector<ExpertsOp> ExpertsOps(const OrtApi* api, uint32_t version) {
  std::vector<ExpertsOp> ops;
  for (const NodeType& type : NodeTypes()) ops.push_back(MakeOp(api, version, type));
  return ops;
}

}  // namespace mxort
