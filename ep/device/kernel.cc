#include "device/kernel.h"

namespace mxort::device {

Status Kernel::Load(const std::shared_ptr<Device>& device, const std::string& object, const std::string& name,
                    Kernel* kernel) {
  kernel->device_ = device;
  kernel->name_ = name;
  return device->Kernel(object, name, &kernel->function_);
}

Status Kernel::Launch(hip::Grid grid, unsigned threads, void* stream, const void* arguments) const {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return {};
  const HipApi& hip = device_->hip();
  const CurrentDevice current(hip, device_->ordinal());
  MXORT_RETURN_IF_ERROR(current.status());
  // HIP copies as many bytes as the kernel's metadata say, and writes none.
  void* parameters[] = {const_cast<void*>(arguments)};
  const int error =
      hip.hipModuleLaunchKernel(function_, grid.x, grid.y, grid.z, threads, 1, 1, 0, stream, parameters, nullptr);
  return error == 0 ? Status() : hip.Check(error, ("launch of " + name_).c_str());
}

}  // namespace mxort::device
