// A loaded kernel, ready to be launched: what a plan or a node keeps, so that a launch looks nothing up.
#ifndef MXORT_DEVICE_KERNEL_H_
#define MXORT_DEVICE_KERNEL_H_

#include <memory>
#include <string>

#include "device/device.h"
#include "device/status.h"
#include "kernels/hip/select.h"

namespace mxort::device {

// Of one device, which it keeps open. Copies are cheap; any thread may launch.
class Kernel {
 public:
  // Kernel `name` of the code object `object` (the name of its .hip file).
  static Status Load(const std::shared_ptr<Device>& device, const std::string& object, const std::string& name,
                     Kernel* kernel);

  // Enqueues `grid` workgroups of `threads` work items on a stream of the device. `arguments`: the kernel's one
  // parameter, a plain struct of args*.h, read before the call returns. An empty grid launches nothing. Calls nothing
  // that a stream under capture forbids.
  Status Launch(hip::Grid grid, unsigned threads, void* stream, const void* arguments) const;

  const std::string& name() const { return name_; }
  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  std::shared_ptr<Device> device_;
  std::string name_;
  void* function_ = nullptr;
};

}  // namespace mxort::device

#endif  // MXORT_DEVICE_KERNEL_H_
