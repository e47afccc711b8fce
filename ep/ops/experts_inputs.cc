#include "ops/experts_inputs.h"

#include "ops/ort_status.h"

namespace mxort {

ExpertsTensors ReadExpertsConstants(const OrtApi& api, const OrtKernelInfo* info) {
  ExpertsTensors tensors;
  for (size_t product = 0; product < kProducts; ++product) {
    for (size_t part = 0; part < kParts; ++part) {
      int is_constant = 0;
      const OrtValue* value = nullptr;
      Check(api, api.KernelInfoGetConstantInput_tensor(info, ExpertsIndex(product, part), &is_constant, &value));
      if (is_constant) tensors[product][part] = ReadTensor(api, value);
    }
  }
  return tensors;
}

void ReadExpertsInputs(const OrtApi& api, const OrtKernelContext* context, ExpertsTensors* tensors) {
  for (size_t product = 0; product < kProducts; ++product) {
    for (size_t part = 0; part < kParts; ++part) {
      Tensor& tensor = (*tensors)[product][part];
      if (!tensor.data) tensor = ReadTensor(api, InputValue(api, context, ExpertsIndex(product, part)));
    }
  }
}

bool AllPresent(const ExpertsTensors& tensors) {
  for (const auto& product : tensors) {
    for (const Tensor& tensor : product) {
      if (!tensor.data) return false;
    }
  }
  return true;
}

ExpertsShapes ShapesOf(const ExpertsTensors& tensors) {
  ExpertsShapes shapes;
  for (size_t product = 0; product < kProducts; ++product) {
    for (size_t part = 0; part < kParts; ++part) shapes[product][part] = tensors[product][part].shape;
  }
  return shapes;
}

Weights WeightsOf(const std::array<Tensor, kParts>& product) {
  return {static_cast<const uint8_t*>(product[kCodes].data), static_cast<const uint8_t*>(product[kScales].data)};
}

}  // namespace mxort
