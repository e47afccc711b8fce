#include "provider/kernels.h"

#include <memory>
#include <utility>
#include <vector>

#include "ops/custom_op_base.h"
#include "provider/ep.h"
#include "provider/memory.h"
#include "provider/op_table.h"

namespace mxort::provider {
namespace {

// ---- MemcpyFromHost, MemcpyToHost -----------------------------------------------------------------------------------

class MemcpyKernel : public OrtKernelImpl {
 public:
  explicit MemcpyKernel(const Runtime& runtime) : OrtKernelImpl{}, runtime_(runtime) {
    ort_version_supported = runtime.version;
    Release = [](OrtKernelImpl* self) noexcept { delete static_cast<MemcpyKernel*>(self); };
    Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
      const Runtime& rt = static_cast<const MemcpyKernel*>(self)->runtime_;
      return Guard(*rt.api, "copy between host and device", [&] {
        const OrtValue* from = InputValue(*rt.api, context, 0);
        const Tensor tensor = ReadTensor(*rt.api, from);
        OrtValue* to = nullptr;
        void* stream = nullptr;
        rt.Check(rt.api->KernelContext_GetGPUComputeStream(context, &stream));
        rt.Check(rt.api->KernelContext_GetOutput(context, 0, tensor.shape.data(), tensor.shape.size(), &to));
        CopyTensor(rt, from, to, stream);
      });
    };
  }

 private:
  const Runtime runtime_;
};

// ---- registry -------------------------------------------------------------------------------------------------------

class Definition {
 public:
  Definition(const Runtime& runtime, const char* domain, const char* type, int since, int until) : runtime_(runtime) {
    runtime.Check(runtime.ep->CreateKernelDefBuilder(&builder_));
    runtime.Check(runtime.ep->KernelDefBuilder_SetDomain(builder_, domain));
    runtime.Check(runtime.ep->KernelDefBuilder_SetOperatorType(builder_, type));
    runtime.Check(runtime.ep->KernelDefBuilder_SetSinceVersion(builder_, since, until));
    runtime.Check(runtime.ep->KernelDefBuilder_SetExecutionProvider(builder_, runtime.name));
  }
  ~Definition() { runtime_.ep->ReleaseKernelDefBuilder(builder_); }
  Definition(const Definition&) = delete;
  Definition& operator=(const Definition&) = delete;

  Definition& HostInput(size_t index) {
    runtime_.Check(runtime_.ep->KernelDefBuilder_SetInputMemType(builder_, index, OrtMemTypeCPUInput));
    return *this;
  }
  Definition& HostOutput(size_t index) {
    runtime_.Check(runtime_.ep->KernelDefBuilder_SetOutputMemType(builder_, index, OrtMemTypeCPUOutput));
    return *this;
  }
  Definition& Constraint(const char* parameter, const Types& types) {
    std::vector<const OrtDataType*> known;
    for (const ONNXTensorElementDataType type : types) {
      runtime_.Check(runtime_.ep->GetTensorDataType(type, &known.emplace_back()));
    }
    runtime_.Check(runtime_.ep->KernelDefBuilder_AddTypeConstraint(builder_, parameter, known.data(), known.size()));
    return *this;
  }
  Definition& Alias(int input, int output) {
    runtime_.Check(runtime_.ep->KernelDefBuilder_AddInputOutputAliases(builder_, &input, &output, 1));
    return *this;
  }
  void AddTo(OrtKernelRegistry* registry, OrtKernelCreateFunc create, void* state) {
    OrtKernelDef* built = nullptr;
    runtime_.Check(runtime_.ep->KernelDefBuilder_Build(builder_, &built));
    OrtStatus* status = runtime_.ep->KernelRegistry_AddKernel(registry, built, create, state);
    runtime_.ep->ReleaseKernelDef(built);  // the registry has copied it
    runtime_.Check(status);
  }

 private:
  const Runtime& runtime_;
  OrtKernelDefBuilder* builder_ = nullptr;
};

OrtStatus* CreateNode(void* state, const OrtKernelInfo* info, OrtKernelImpl** kernel) noexcept {
  const auto& entry = *static_cast<const KernelRegistry::Entry*>(state);
  const OrtApi& api = *entry.ep->runtime().api;
  return Guard(api, std::string(entry.row->type) + " '" + NodeName(api, info) + "'",
               [&] { *kernel = entry.row->create(NodeInfo(*entry.ep, *entry.row, info)).release(); });
}

OrtStatus* CreateMemcpy(void* state, const OrtKernelInfo*, OrtKernelImpl** kernel) noexcept {
  const Runtime& runtime = static_cast<Ep*>(state)->runtime();
  return Guard(*runtime.api, kEpName, [&] { *kernel = new MemcpyKernel(runtime); });
}

}  // namespace

KernelRegistry::KernelRegistry(Ep& ep) : ep_(*ep.runtime().ep) {
  const Runtime& runtime = ep.runtime();
  runtime.Check(runtime.ep->CreateKernelRegistry(&registry_));
  entries_.reserve(OpTable().size());
  for (const OpRow& row : OpTable()) {
    entries_.push_back({&ep, &row});
    Definition definition(runtime, row.domain, row.type, row.since, row.until);
    for (const auto& [parameter, types] : row.constraints) definition.Constraint(parameter, types);
    for (const size_t input : row.host_inputs) definition.HostInput(input);
    for (const size_t output : row.host_outputs) definition.HostOutput(output);
    for (const auto& [input, output] : row.aliases) definition.Alias(input, output);
    definition.AddTo(registry_, CreateNode, &entries_.back());
  }
  Definition(runtime, "", "MemcpyFromHost", 1, 1).HostInput(0).AddTo(registry_, CreateMemcpy, &ep);
  Definition(runtime, "", "MemcpyToHost", 1, 1).HostOutput(0).AddTo(registry_, CreateMemcpy, &ep);
}

KernelRegistry::~KernelRegistry() { ep_.ReleaseKernelRegistry(registry_); }

}  // namespace mxort::provider
