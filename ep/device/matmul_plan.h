// MatMulMXFP4 on a device: weights uploaded once, kernels checked once, then launched.
//
//   MatMulPlan::Create(host weights) --SharedDeviceWeights--> DeviceWeights (records, column_scale, bias; shared by
//                                            |                content)
//                        kernels of this spec loaded and checked against the CPU, those that disagree left out
//                                            |
//   Launch(stream, A, M, Y, workspace):  few rows: one kernel; else prepare -> gemm (-> reduce) (-> activate).
//                        Enqueued; nothing waits, nothing is allocated
#ifndef MXORT_DEVICE_MATMUL_PLAN_H_
#define MXORT_DEVICE_MATMUL_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "device/device_weights.h"
#include "device/kernel.h"
#include "device/status.h"
#include "kernels/hip/args_rows.h"
#include "kernels/hip/select.h"
#include "kernels/kernel.h"

namespace mxort::device {

// Whether there is a kernel for this problem on such a device, without touching it: kUnsupported with the reason (what
// to log when a node is not claimed).
// `disabled` (hip::Device) are the kernels that failed their self-check.
Status Supports(const DeviceInfo& device, const MatMulSpec& spec, DataType type, uint64_t disabled = 0);

struct PlanOptions {
  bool self_check = true;  // before the first use of a kernel on the device in this process
  std::string kernel;      // only this row of hip::GemmRows; empty: the best one for each M
  int64_t most_rows = 0;   // of A in one launch, rounded up to 256; 0: what the kernels can. For tests
  // What follows the product P, in float: Y = f(P). Of a gate's N = 64 i weights, columns 0 .. 31 of each 64 are gates
  // and the next 32 what they multiply: Y = f(gates) * values, of y_columns columns, the first of N / 2.
  hip::Follow follow = hip::Follow::kNone;
  int64_t gated_columns = 0;  // y_columns; 0: no gate
};

// One product with its quantised weights, ready to launch. Immutable: any number of threads and streams at once.
class MatMulPlan {
 public:
  // On the arena's device. kUnsupported: no kernel, or every one disagreed with the CPU. Any other error is of the
  // device.
  static Status Create(const std::shared_ptr<Arena>& arena, const MatMulSpec& spec, DataType type,
                       const HostWeights& host, const PlanOptions& options, std::unique_ptr<MatMulPlan>* plan);

  // Bytes that Launch needs for `m` rows. 0 for m = 0.
  size_t WorkspaceBytes(int64_t m) const;

  // Enqueues Y [m, y_columns] = A [m, K] on a stream of the plan's device. A, Y and `workspace` (WorkspaceBytes(m)
  // bytes) lie in that device's memory, 16-byte aligned, and must stay until the stream is through. Zero rows launch
  // nothing. More rows, or outputs, than a launch can index are done in several. Calls nothing that a stream under
  // capture forbids.
  Status Launch(void* stream, const void* a, int64_t m, void* y, void* workspace) const;
  // The same with the workspace from an arena of the same device. On the default stream (null) it waits for the result:
  // an arena knows no order for that stream.
  Status Launch(void* stream, const void* a, int64_t m, void* y, const std::shared_ptr<Arena>& arena) const;

  // Whether LaunchNormalised has one kernel for these rows and addresses; else the normalisation is the caller's.
  bool TakesNorm(const hip::NormArgs& norm, int64_t m) const;
  // The same for A = what `norm` makes of its x, [m, K] of type(); out_type is type(), mean and inverse are not asked
  // for.
  Status LaunchNormalised(void* stream, const hip::NormArgs& norm, int64_t m, void* y) const;

  // Name of the kernel for `m` rows: "gemm_fp4_128x128". Empty: none (m = 0).
  std::string KernelFor(int64_t m) const;
  const std::shared_ptr<Device>& device() const { return weights_->device(); }
  const DeviceWeights& weights() const { return *weights_; }
  const MatMulSpec& spec() const { return spec_; }
  DataType type() const { return type_; }  // of A and Y
  int64_t y_columns() const { return options_.gated_columns ? options_.gated_columns : spec_.N; }

 private:
  MatMulPlan(const MatMulSpec& spec, DataType type, std::shared_ptr<const DeviceWeights> weights, PlanOptions options)
      : spec_(spec), type_(type), weights_(std::move(weights)), options_(std::move(options)) {}
  // What a number of rows is launched as. Kernels are members of kernels_, null where the plan has none.
  struct Choice {
    hip::Plan plan;
    const Kernel *prepare = nullptr, *gemm = nullptr, *reduce = nullptr;
  };
  bool Followed() const { return options_.follow != hip::Follow::kNone || options_.gated_columns != 0; }
  Status LoadKernels();
  Choice Choose(int64_t m) const;
  int64_t RowsOfLaunch() const;
  size_t WorkspaceOf(const hip::Plan& plan, int64_t m) const;
  Status LaunchRows(void* stream, const void* a, int64_t m, void* y, void* workspace) const;
  Status LaunchDirect(void* stream, const Choice& choice, const void* a, unsigned m, void* y,
                      const hip::NormArgs* norm) const;
  Status LaunchProduct(void* stream, const Choice& choice, const void* a, unsigned m, void* p, DataType p_type,
                       char* workspace) const;
  Status LaunchActivate(void* stream, const float* p, unsigned m, void* y) const;
  Status Load(const char* object, const char* name);
  const Kernel* Find(const char* name) const;

  const MatMulSpec spec_;
  const DataType type_;
  const std::shared_ptr<const DeviceWeights> weights_;
  const PlanOptions options_;
  uint64_t disabled_ = 0;                               // hip::Device::disabled
  std::map<std::string, Kernel, std::less<>> kernels_;  // every one that Choose may name
  Kernel activate_;
  std::vector<Choice> few_;  // for 1, 2, ... rows: a decode step chooses nothing
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_MATMUL_PLAN_H_
