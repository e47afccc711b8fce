// A mixture of experts on a device: weights uploaded once, kernels checked once, then launched.
//
//   few rows    route and prepare X -> first product -> activate and prepare -> second product and weighted sum
//   many rows   route -> arrange -> prepare X by slot -> first product -> activate and prepare -> second product -> sum
#ifndef MXORT_DEVICE_EXPERTS_H_
#define MXORT_DEVICE_EXPERTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device/arena.h"
#include "device/device_weights.h"
#include "device/kernel.h"
#include "device/status.h"
#include "kernels/experts.h"
#include "kernels/hip/select_experts.h"

namespace mxort::device {

// As Supports of matmul_plan.h. `disabled`: rows of hip::ExpertsRows that failed their self-check.
Status SupportsExperts(const DeviceInfo& device, const ExpertsSpec& spec, DataType type, uint64_t disabled = 0);

struct ExpertsOptions {
  bool self_check = true;
  std::string kernel;     // only this row of hip::ExpertsRows; empty: the best one for each number of rows
  int64_t most_rows = 0;  // of one launch; 0: what the kernels can. For tests
};

// Ready to launch, immutable: any number of threads and streams at once.
class ExpertsPlan {
 public:
  // On the arena's device, of weights [experts * N, K] of each product. Errors as MatMulPlan::Create.
  static Status Create(const std::shared_ptr<Arena>& arena, const ExpertsSpec& spec, DataType type, HostWeights first,
                       HostWeights second, const ExpertsOptions& options, std::unique_ptr<ExpertsPlan>* plan);

  size_t WorkspaceBytes(int64_t rows) const;

  // Enqueues Y [rows, hidden] of X [rows, hidden] and logits [rows, experts], as MatMulPlan::Launch. Y may not be X.
  Status Launch(void* stream, const void* x, const void* router, int64_t rows, void* y, void* workspace) const;

  std::string KernelFor(int64_t rows) const;  // a row of hip::ExpertsRows; empty: none
  const std::shared_ptr<Device>& device() const { return weights_[0]->device(); }
  const ExpertsSpec& spec() const { return spec_; }

 private:
  // Of one row of the table.
  struct Products {
    Kernel kernel[2];
  };
  struct Launching;

  ExpertsPlan(const ExpertsSpec& spec, DataType type, ExpertsOptions options)
      : spec_(spec), type_(type), options_(std::move(options)) {}
  Status LoadKernels();
  hip::ExpertsPlan Choose(int64_t rows) const;
  int64_t LaunchRows() const;
  Status LaunchFew(const Launching& launch) const;
  Status LaunchMany(const Launching& launch) const;
  Status LaunchProduct(const Launching& launch, int product) const;
  Status LaunchInner(const Launching& launch) const;

  const ExpertsSpec spec_;
  const DataType type_;
  const ExpertsOptions options_;
  std::array<std::shared_ptr<const DeviceWeights>, 2> weights_;
  uint64_t disabled_ = 0;
  std::map<const hip::ExpertsRow*, Products> products_;
  Kernel few_, route_, arrange_, gather_, inner_, combine_;
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_EXPERTS_H_
