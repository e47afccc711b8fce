#include "python/device_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "device/device_weights.h"
#include "device/matmul_plan.h"
#include "device/self_check.h"
#include "device/tensor_check.h"
#include "kernels/float16.h"
#include "ops/matmul_spec.h"
#include "python/arrays.h"

namespace py = pybind11;

namespace mxort {
namespace {

using namespace device;

// mxort._native.DeviceError: what Status holds.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void Check(const Status& status) {
  if (!status.ok()) throw DeviceError(status.message());
}

py::dict HipRuntime() {
  const HipApi* hip = nullptr;
  const Status status = GetHip(&hip);
  return py::dict(py::arg("available") = status.ok(), py::arg("library") = hip->library,
                  py::arg("version") = hip->runtime_version ? hip->VersionText() : "",
                  py::arg("problem") = status.message());
}

py::list ListDevices() {
  std::vector<DeviceInfo> devices;
  Check(Devices(&devices));
  py::list out;
  for (const DeviceInfo& d : devices) {
    out.append(py::dict(py::arg("ordinal") = d.ordinal, py::arg("name") = d.name, py::arg("arch") = d.arch,
                        py::arg("pci_bus_id") = d.pci_bus_id, py::arg("memory_bytes") = d.memory_bytes,
                        py::arg("compute_units") = d.compute_units, py::arg("supported") = d.supported(),
                        py::arg("unsupported") = d.unsupported));
  }
  return out;
}

struct TypeName {
  const char* name;
  DataType type;
};
constexpr TypeName kTypes[] = {
    {"float32", DataType::kFloat}, {"float16", DataType::kFloat16}, {"bfloat16", DataType::kBFloat16}};

DataType TypeNamed(const std::string& name) {
  for (const TypeName& row : kTypes) {
    if (name == row.name) return row.type;
  }
  throw std::invalid_argument("dtype: got '" + name + "', expected float32, float16 or bfloat16");
}

py::list Checks() {
  py::list out;
  for (const KernelCheck& check : KernelChecks()) {
    out.append(py::dict(
        py::arg("device") = check.device, py::arg("kernel") = check.kernel, py::arg("preparation") = check.preparation,
        py::arg("terms") = check.terms, py::arg("dtype") = kTypes[static_cast<size_t>(check.type)].name,
        py::arg("passed") = check.passed, py::arg("error") = check.error, py::arg("bound") = check.bound));
  }
  return out;
}

void CheckFor(int ordinal, const std::string& activation_format, int accuracy_level, const std::string& dtype) {
  const MatMulSpec spec = CheckAttributes({kBlockSize * 4, 1, 1, activation_format, accuracy_level});
  const DataType type = TypeNamed(dtype);
  const py::gil_scoped_release release;
  std::shared_ptr<Device> device;
  Check(Device::Open(ordinal, &device));
  uint64_t disabled = 0;
  Check(CheckKernels(device, spec, type, true, &disabled));
}

void CheckTensors(int ordinal, const std::string& dtype) {
  const DataType type = TypeNamed(dtype);
  const py::gil_scoped_release release;
  std::shared_ptr<Device> device;
  Check(Device::Open(ordinal, &device));
  std::string wrong;
  Check(CheckTensorKernels(device, kAllTensorKernels, type, true, &wrong));
}

// Launches of a product without what follows it: selection is a pure function, so that no device is needed.
int Launches(int64_t rows, const MatMulAttributes& attributes, const std::string& dtype, const std::string& arch,
             int compute_units) {
  const hip::Plan plan =
      hip::Select({arch.c_str(), compute_units}, CheckAttributes(attributes), TypeNamed(dtype), rows);
  if (!plan.gemm) throw std::invalid_argument("no kernel for " + arch + " computes " + std::to_string(rows) + " rows");
  return plan.gemm->direct ? 1 : plan.splits > 1 ? 3 : 2;
}

// Weights on a GPU with a stream and an arena of its own: what a session's node holds there.
class GpuNode {
 public:
  GpuNode(const ConstantInputs& inputs, const MatMulAttributes& attributes, const std::string& dtype, int ordinal,
          const PlanOptions& options, size_t memory_limit)
      : spec_(CheckAttributes(attributes)), type_(TypeNamed(dtype)) {
    inputs.Check(spec_);
    const py::gil_scoped_release release;
    std::shared_ptr<Device> device;
    Check(Device::Open(ordinal, &device));
    arena_ = Arena::Create(device, memory_limit);
    const HostWeights host = {inputs.weights(), inputs.column_scale.data(), inputs.bias.data()};
    Check(MatMulPlan::Create(arena_, spec_, type_, host, options, &plan_));
    Check(Stream::Create(device, &stream_));
  }

  std::string KernelFor(int64_t rows) const { return plan_->KernelFor(rows); }
  uintptr_t weights_address() const { return reinterpret_cast<uintptr_t>(plan_->weights().records()); }

  py::array Run(const py::array& a) const {
    const Rows rows = RowsOf(a);
    {
      void* y = const_cast<void*>(rows.y.data());
      const py::gil_scoped_release release;
      Tensors tensors;
      Upload(a, rows, &tensors);
      Check(plan_->Launch(stream_->handle(), tensors.a.data(), rows.count, tensors.y.data(), arena_));
      Check(Copy(kHost, y, Ordinal(), tensors.y.data(), tensors.y_bytes, stream_->handle()));
      Check(stream_->Synchronize());
    }
    return rows.y;
  }

  // Milliseconds of each run on the device's clock, A and Y on the device.
  std::vector<float> Time(const py::array& a, int runs) const {
    const Rows rows = RowsOf(a);
    const py::gil_scoped_release release;
    Tensors tensors;
    Upload(a, rows, &tensors);
    Buffer workspace;
    Check(workspace.Allocate(arena_, plan_->WorkspaceBytes(rows.count), stream_->handle()));
    std::unique_ptr<Event> start, stop;
    Check(Event::Create(plan_->device(), true, &start));
    Check(Event::Create(plan_->device(), true, &stop));
    std::vector<float> times(static_cast<size_t>(std::max(0, runs)));
    for (float& milliseconds : times) {
      Check(start->Record(stream_->handle()));
      Check(plan_->Launch(stream_->handle(), tensors.a.data(), rows.count, tensors.y.data(), workspace.data()));
      Check(stop->Record(stream_->handle()));
      Check(stop->Synchronize());
      Check(stop->MillisecondsSince(*start, &milliseconds));
    }
    return times;
  }

  void Trim() const {
    arena_->ReleaseStream(stream_->handle());
    Check(arena_->Trim());
  }

  py::dict Memory() const {
    const Arena::Statistics s = arena_->statistics();
    return py::dict(py::arg("in_use") = s.in_use, py::arg("cached") = s.cached, py::arg("peak") = s.peak,
                    py::arg("limit") = s.limit, py::arg("allocations") = s.allocations,
                    py::arg("reserved") = s.reserved);
  }

 private:
  struct Tensors {
    Buffer a, y;
    size_t y_bytes = 0;
  };

  int Ordinal() const { return plan_->device()->ordinal(); }

  Rows RowsOf(const py::array& a) const {
    if (TypeOf(a.dtype()) != type_) throw std::invalid_argument("A: got another dtype than this node was made for");
    return Rows(spec_, a);
  }

  void Upload(const py::array& a, const Rows& rows, Tensors* tensors) const {
    const size_t size = DataTypeBytes(type_), m = static_cast<size_t>(rows.count);
    const size_t a_bytes = m * static_cast<size_t>(spec_.K) * size;
    tensors->y_bytes = m * static_cast<size_t>(spec_.N) * size;
    Check(tensors->a.Allocate(arena_, a_bytes, stream_->handle()));
    Check(tensors->y.Allocate(arena_, tensors->y_bytes, stream_->handle()));
    Check(Copy(Ordinal(), tensors->a.data(), kHost, a.data(), a_bytes, stream_->handle()));
  }

  const MatMulSpec spec_;
  const DataType type_;
  std::shared_ptr<Arena> arena_;
  std::unique_ptr<MatMulPlan> plan_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace

void BindDevices(py::module_& m) {
  py::register_exception<DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  m.def("hip_runtime", &HipRuntime, "The HIP runtime: {available, library, version, problem}.");
  m.def("devices", &ListDevices,
        "GPUs that the HIP runtime shows, supported or not, as dicts. DeviceError: no runtime.");
  m.def("check_gpu_kernels", &CheckFor, py::arg("device"), py::arg("activation_format"), py::arg("accuracy_level"),
        py::arg("dtype"), "Runs the self-check of the kernels for such nodes, unless it ran in this process.");
  m.def("check_gpu_tensor_kernels", &CheckTensors, py::arg("device"), py::arg("dtype"),
        "The same of the kernels that take tensors as they are: products, attention, rows, elements, copies, gathers.");
  m.def("gpu_kernel_checks", &Checks, "Results of all self-checks of GPU kernels in this process, as dicts.");
  m.def(
      "gpu_launches",
      [](int64_t rows, int64_t k, int64_t n, const std::string& weight_format, const std::string& activation_format,
         int accuracy_level, const std::string& dtype, const std::string& arch, int compute_units) {
        return Launches(rows, {k, n, 1, activation_format, accuracy_level, WeightFormatOf(weight_format)}, dtype, arch,
                        compute_units);
      },
      py::arg("rows"), py::arg("K"), py::arg("N"), py::arg("weight_format") = "mxfp4",
      py::arg("activation_format") = "none", py::arg("accuracy_level") = 0, py::arg("dtype") = "float16",
      py::arg("arch") = "gfx950", py::arg("compute_units") = 256,
      "Kernels that a product of `rows` rows is on such a GPU: 1, and what follows it is in that one; else 2 or 3.");
  py::class_<GpuNode>(m, "GpuMatMulMXFP4", "One operator with constant weights on a GPU.")
      .def(py::init([](const Array<uint8_t>& codes, const Array<uint8_t>& scales, const Array<float>& column_scale,
                       const Array<float>& bias, int64_t k, int rotation, const std::string& activation_format,
                       int accuracy_level, const std::string& dtype, int ordinal, const std::string& kernel,
                       bool self_check, size_t memory_limit, int64_t most_rows) {
             const ConstantInputs inputs{codes, scales, column_scale, bias};
             return std::make_unique<GpuNode>(
                 inputs, MatMulAttributes{k, inputs.N(), rotation, activation_format, accuracy_level}, dtype, ordinal,
                 PlanOptions{self_check, kernel, most_rows}, memory_limit);
           }),
           py::arg("codes").noconvert(), py::arg("scales").noconvert(), py::arg("column_scale").noconvert(),
           py::arg("bias").noconvert(), py::arg("K"), py::arg("rotation") = 1, py::arg("activation_format") = "none",
           py::arg("accuracy_level") = 0, py::arg("dtype") = "float32", py::arg("device") = 0, py::arg("kernel") = "",
           py::arg("self_check") = true, py::arg("memory_limit") = 0, py::arg("most_rows") = 0)
      .def("kernel_for", &GpuNode::KernelFor, py::arg("rows"), "Name of the kernel that runs `rows` rows of A.")
      .def_property_readonly("weights_address", &GpuNode::weights_address, "Equal where two nodes share one upload.")
      .def("memory", &GpuNode::Memory, "Bytes of this node's arena: in_use, cached, peak, limit; and its calls.")
      .def("trim", &GpuNode::Trim, "Gives cached memory back to the device.")
      .def("time", &GpuNode::Time, py::arg("a"), py::arg("runs"),
           "Milliseconds of each run by the device's events, A and Y on the device.")
      .def("__call__", &GpuNode::Run, py::arg("a"), "A [..., K] in host memory -> Y [..., N] in host memory.");
}

}  // namespace mxort
