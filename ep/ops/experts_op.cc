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
#include "ops/ort_status.h"

namespace mxort {
namespace {

enum ExpertsInput { kX, kRouter, kWeights, kExpertsInputs = kWeights + 8 };
// Of a product, from kWeights on for one after the other.
enum Part { kCodes, kScales, kColumnScales, kBiases, kParts };
constexpr const char* kProductNames[] = {"gate_up", "down"};
constexpr const char* kPartNames[kParts] = {"_B", "_B_scale", "_column_scale", "_bias"};
constexpr size_t kProducts = 2;

// A tensor of [experts, columns] as floats.
const float* Widened(const Tensor& tensor, DataType type, std::vector<float>* widened) {
  if (type == DataType::kFloat) return static_cast<const float*>(tensor.data);
  const int64_t size = tensor.shape[0] * tensor.shape[1];
  widened->resize(static_cast<size_t>(size));
  WidenRow(type, tensor.data, size, size, widened->data());
  return widened->data();
}

// The weights of one of the products, of all experts; `tensors` are those of a call, or what is constant.
struct ProductTensors {
  std::array<Tensor, kParts> tensors;
  std::shared_ptr<const PackedWeights> packed;  // null: not constant
};

int64_t Checked(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    Fail(std::string("attribute ") + name, std::to_string(value),
         std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

class ExpertsKernel {
 public:
  ExpertsKernel(const ExpertsOp& op, const OrtKernelInfo* info)
      : api_(*op.api), type_(op.type), where_(Where(op, info)) {
    const KernelAttributes node(api_, info);
    ReadSpec(node);
    node.String("activation_format", &attributes_.activation_format);
    node.Int("rotation", &attributes_.rotation);
    node.Int("accuracy_level", &attributes_.accuracy_level);
    attributes_.K = attributes_.N = kMaxRotation;  // of a call; here the other attributes are checked
    kernels_ = SelectKernels(CheckAttributes(attributes_), DetectCpu(), KernelOverride());
    activate_ = SelectFunctions(DetectCpu(), KernelOverride()).activate;
    for (size_t product = 0; product < kProducts; ++product) {
      for (size_t part = 0; part < kParts; ++part) {
        int is_constant = 0;
        const OrtValue* value = nullptr;
        Check(api_, api_.KernelInfoGetConstantInput_tensor(info, Index(product, part), &is_constant, &value));
        if (is_constant) constants_[product].tensors[part] = ReadTensor(api_, value);
      }
    }
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
    std::array<ProductTensors, kProducts> products = constants_;
    for (size_t product = 0; product < kProducts; ++product) {
      for (size_t part = 0; part < kParts; ++part) {
        Tensor& tensor = products[product].tensors[part];
        if (!tensor.data) tensor = ReadTensor(api_, InputValue(api_, context, Index(product, part)));
      }
    }
    const ExpertsSpec spec = SpecOf(products);
    const int64_t rows = CheckRows(spec, x.shape, router.shape);
    if (rows == 0) return;
    const ParallelFor parallel = [&](int64_t tasks, const std::function<void(int64_t)>& body) {
      Parallel(api_, context, tasks, body);
    };
    std::vector<float> widened[kProducts][2];
    MatMulOperand operands[kProducts];
    const MatMulSpec* specs[kProducts] = {&spec.first, &spec.second};
    for (size_t i = 0; i < kProducts; ++i) {
      ProductTensors& product = products[i];
      if (!product.packed) {
        product.packed = std::make_shared<PackedWeights>(*specs[i], *kernels_[0]->layout, WeightsOf(product), parallel);
      }
      const DataType vectors = DataTypeOf(kBias, type_.vectors);
      operands[i] = {product.packed.get(), WeightsOf(product),
                     Widened(product.tensors[kColumnScales], vectors, &widened[i][0]),
                     Widened(product.tensors[kBiases], vectors, &widened[i][1])};
    }
    Experts({&spec, &kernels_, activate_, operands[0], operands[1], type_.a.type, rows, x.data, router.data, y},
            parallel);
  }

 private:
  static size_t Index(size_t product, size_t part) { return kWeights + product * kParts + part; }
  static Weights WeightsOf(const ProductTensors& product) {
    return {static_cast<const uint8_t*>(product.tensors[kCodes].data),
            static_cast<const uint8_t*>(product.tensors[kScales].data)};
  }

  void ReadSpec(const KernelAttributes& node) {
    spec_.chosen = node.Required("k");
    CheckDimension("k", spec_.chosen);
    int64_t normalize = 0, gating = 0;
    node.Int("normalize_routing_weights", &normalize);
    node.Int("swiglu_fusion", &gating);
    spec_.normalize = normalize != 0;
    spec_.gating = static_cast<Gating>(Checked("swiglu_fusion", gating, 0, kGatings - 1));
    spec_.activation = static_cast<Activation>(Checked("activation", node.Required("activation"), 0, kActivations - 1));
    float limit = 0, alpha = 1;
    node.Float("activation_alpha", &alpha);
    node.Float("swiglu_limit", &limit);
    if (spec_.activation == Activation::kSilu) spec_.shape.alpha = alpha;
    if (spec_.gating != Gating::kNone) {
      node.Float("activation_beta", &spec_.shape.beta);
      if (limit > 0) spec_.shape.limit = limit;
    }
    if (spec_.shape.alpha == 0) Fail("attribute activation_alpha", "0", "another number");
  }

  // Both products are packed where their codes and scales are constant: what follows from the shapes is known then.
  void PackConstants() {
    for (const ProductTensors& product : constants_) {
      if (!product.tensors[kCodes].data || !product.tensors[kScales].data) return;
    }
    const ExpertsSpec spec = SpecOf(constants_);
    const MatMulSpec* specs[kProducts] = {&spec.first, &spec.second};
    for (size_t i = 0; i < kProducts; ++i) {
      ProductTensors& product = constants_[i];
      product.packed = SharedPackedWeights(*specs[i], *kernels_[0]->layout, WeightsOf(product));
      const int64_t blocks = specs[i]->N * BlocksOf(specs[i]->K);
      DropFilePages(product.tensors[kCodes].data, static_cast<size_t>(blocks * kPackedBlockBytes));
      DropFilePages(product.tensors[kScales].data, static_cast<size_t>(blocks));
    }
  }

  // The spec with the sizes that the weights' shapes give; those that are read are checked.
  ExpertsSpec SpecOf(const std::array<ProductTensors, kProducts>& products) const {
    ExpertsSpec spec = spec_;
    const Shape &first = products[0].tensors[kCodes].shape, &second = products[1].tensors[kCodes].shape;
    if (first.size() != 3 || first[0] == 0 || first[2] == 0 || first[2] % kPackedBlockBytes != 0) {
      Fail("input gate_up_B", "shape " + Text(first), "[experts, columns, a multiple of 16]");
    }
    const int64_t parts = spec.gating == Gating::kNone ? 1 : 2;
    spec.experts = first[0];
    spec.hidden = 2 * first[2];
    spec.inner = first[1] / parts;
    if (first[1] == 0 || first[1] % (parts * kBlockSize) != 0) {
      Fail("input gate_up_B", "shape " + Text(first),
           "[experts, a multiple of " + std::to_string(parts * kBlockSize) + ", bytes]");
    }
    if (spec.chosen > spec.experts) Checked("k", spec.chosen, 1, spec.experts);
    CheckShape("down_B", second, {spec.experts, spec.hidden, spec.inner / 2});
    const int64_t columns[kProducts] = {first[1], spec.hidden}, depths[kProducts] = {spec.hidden, spec.inner};
    for (size_t i = 0; i < kProducts; ++i) {
      for (size_t part = kScales; part < kParts; ++part) {
        const Tensor& tensor = products[i].tensors[part];
        const std::string name = std::string(kProductNames[i]) + kPartNames[part];
        Shape expected = {spec.experts, columns[i]};
        if (part == kScales) expected.push_back(depths[i] / kBlockSize);
        if (tensor.data) CheckShape(name.c_str(), tensor.shape, expected);
      }
      MatMulAttributes attributes = attributes_;
      attributes.K = depths[i];
      attributes.N = columns[i];
      MatMulSpec& product = i == 0 ? spec.first : spec.second;
      product = CheckAttributes(attributes);
      product.N *= spec.experts;
    }
    return spec;
  }

  static int64_t CheckRows(const ExpertsSpec& spec, const Shape& x, const Shape& router) {
    if (x.empty() || x.back() != spec.hidden) {
      Fail("input X", "shape " + Text(x), "[..., " + std::to_string(spec.hidden) + "]");
    }
    int64_t rows = 1, logits = 1;
    for (size_t i = 0; i + 1 < x.size(); ++i) rows *= x[i];
    for (size_t i = 0; i + 1 < router.size(); ++i) logits *= router[i];
    if (router.empty() || router.back() != spec.experts || logits != rows) {
      Fail("input router", "shape " + Text(router),
           "[" + std::to_string(rows) + "," + std::to_string(spec.experts) + "] or with the dimensions of X");
    }
    return rows;
  }

  const OrtApi& api_;
  const NodeType type_;
  const std::string where_;
  ExpertsSpec spec_;
  MatMulAttributes attributes_;
  Kernels kernels_;
  Activate activate_;
  std::array<ProductTensors, kProducts> constants_;
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
