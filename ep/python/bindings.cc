// mxort._native: the library's own tables and kernels, called directly by the converter, the tests and the benchmarks.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/float16.h"
#include "kernels/hip/code_objects.h"
#include "kernels/kernel_table.h"
#include "kernels/matmul.h"
#include "ops/matmul_spec.h"
#include "python/arrays.h"
#include "python/device_bindings.h"
#include "python/limits.h"
#include "python/quantize_bindings.h"

namespace py = pybind11;

namespace mxort {
namespace {

constexpr std::pair<const char*, bool CpuFeatures::*> kCpuFeatures[] = {
    {"avx2_fma", &CpuFeatures::avx2_fma},
    {"avx_vnni", &CpuFeatures::avx_vnni},
    {"avx512", &CpuFeatures::avx512},
    {"avx512_vnni", &CpuFeatures::avx512_vnni},
    {"avx512_vnni_vbmi", &CpuFeatures::avx512_vnni_vbmi},
    {"amx_bf16", &CpuFeatures::amx_bf16},
};

// Weights packed once for a kernel, to be multiplied many times: what a session's node holds.
class Node {
 public:
  Node(ConstantInputs inputs, const MatMulAttributes& attributes, const std::string& kernel)
      : spec_(CheckAttributes(attributes)),
        kernels_(SelectKernels(spec_, DetectCpu(), kernel.empty() ? KernelOverride() : kernel)),
        inputs_(std::move(inputs)) {
    inputs_.Check(spec_);
    packed_ = SharedPackedWeights(spec_, *kernels_[0]->layout, inputs_.weights());
  }

  std::string KernelOf(int64_t rows) const { return KernelFor(kernels_, rows, packed_->scales()).name; }
  size_t packed_bytes() const { return packed_->bytes(); }
  uintptr_t packed_address() const { return reinterpret_cast<uintptr_t>(packed_->data()); }

  py::array Run(const py::array& a, int threads) const {
    Rows rows(spec_, a);
    MatMulCall call;
    call.spec = &spec_;
    call.kernels = &kernels_;
    call.operand = {packed_.get(), inputs_.weights(), inputs_.column_scale.data(), inputs_.bias.data()};
    call.type = TypeOf(a.dtype());
    call.M = rows.count;
    call.a = a.data();
    call.y = rows.y.mutable_data();
    {
      const py::gil_scoped_release release;
      MatMul(call, ThreadedFor(threads));
    }
    return rows.y;
  }

 private:
  MatMulSpec spec_;
  Kernels kernels_;
  ConstantInputs inputs_;
  std::shared_ptr<const PackedWeights> packed_;
};

template <class F>
py::dict DescribeFormat() {
  const unsigned sign = SignBit<F>();
  std::vector<float> values;
  for (unsigned code = 0; code < 2 * sign; ++code) values.push_back(DecodeElement<F>(static_cast<uint8_t>(code)));
  return py::dict(py::arg("exponent_bits") = F::kExponentBits, py::arg("mantissa_bits") = F::kMantissaBits,
                  py::arg("bias") = F::kBias, py::arg("emax") = F::kEmax, py::arg("max") = F::kMax,
                  py::arg("values") = values);
}

py::dict Describe() {
  py::dict formats;
  formats[E2M1::kName] = DescribeFormat<E2M1>();
  formats[E2M3::kName] = DescribeFormat<E2M3>();
  formats[E3M2::kName] = DescribeFormat<E3M2>();
  formats[E4M3::kName] = DescribeFormat<E4M3>();
  formats[E5M2::kName] = DescribeFormat<E5M2>();
  formats[INT8::kName] = DescribeFormat<INT8>();
  std::vector<float> scales;
  for (int byte = 0; byte < 256; ++byte) scales.push_back(DecodeScale(static_cast<uint8_t>(byte)));
  py::dict operators;
  for (const auto& of_a_kind : {MatMulOperators(), GatherOperators()}) {
    for (const WeightOperator& op : of_a_kind) {
      std::vector<int64_t> exponent_bits;
      for (const WeightFormat format : op.formats) exponent_bits.push_back(ExponentBits(format));
      operators[op.name.c_str()] = exponent_bits;
    }
  }
  operators[kExpertsName] = std::vector<int64_t>{ExponentBits(WeightFormat::kMxfp4)};
  const CpuFeatures cpu = DetectCpu();
  py::dict features;
  for (const auto& [name, member] : kCpuFeatures) features[name] = cpu.*member;
  py::list kernels;
  for (const Kernel* kernel : KernelTable()) {
    std::vector<std::string> held;
    for (const std::string& name : WeightFormatNames()) {
      if (kernel->layout->holds(WeightFormatOf(name))) held.push_back(name);
    }
    kernels.append(py::dict(py::arg("name") = kernel->name, py::arg("layout") = kernel->layout->name,
                            py::arg("weight_formats") = held, py::arg("available") = kernel->cpu_has(cpu)));
  }
  return py::dict(py::arg("domain") = kDomain, py::arg("block_size") = kBlockSize, py::arg("scale_bias") = kScaleBias,
                  py::arg("scale_nan") = static_cast<int>(kScaleNaN), py::arg("element_formats") = formats,
                  py::arg("scale_values") = scales, py::arg("operators") = operators, py::arg("kernels") = kernels,
                  py::arg("cpu") = features, py::arg("ort_header_api") = MXORT_ORT_API,
                  py::arg("compiler") = MXORT_COMPILER);
}

// The choice for a CPU that is described instead of detected.
std::string SelectFor(const std::vector<std::string>& features, const std::string& first,
                      const std::string& activation_format, int accuracy_level, int64_t rows,
                      const std::string& weight_format) {
  CpuFeatures cpu;
  for (const auto& [name, member] : kCpuFeatures) {
    cpu.*member = std::count(features.begin(), features.end(), name) > 0;
  }
  const MatMulSpec spec =
      CheckAttributes({kBlockSize, 1, 1, activation_format, accuracy_level, WeightFormatOf(weight_format)});
  return KernelFor(SelectKernels(spec, cpu, first), rows, {kScaleBias, kScaleBias}).name;
}

// The GPU code objects of this build: (source, architecture, bytes). Empty where there was no compiler for them.
py::list CodeObjects() {
  size_t count = 0;
  const hip::CodeObject* objects = hip::CodeObjects(&count);
  py::list out;
  for (size_t i = 0; i < count; ++i) {
    out.append(py::make_tuple(objects[i].name, objects[i].arch,
                              py::bytes(static_cast<const char*>(objects[i].data), objects[i].bytes)));
  }
  return out;
}

// Every value of `x` through the element rounding of format F: (codes, values), for exhaustive tests.
template <class F>
py::tuple RoundAll(const Array<float>& x) {
  Array<uint8_t> codes(x.size());
  Array<float> values(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    const Element element = RoundToElement<F>(x.data()[i]);
    codes.mutable_data()[i] = element.code;
    values.mutable_data()[i] = element.value;
  }
  return py::make_tuple(codes, values);
}

py::tuple Round(const Array<float>& x, const std::string& format) {
  if (format == E2M1::kName) return RoundAll<E2M1>(x);
  if (format == E2M3::kName) return RoundAll<E2M3>(x);
  if (format == E3M2::kName) return RoundAll<E3M2>(x);
  if (format == E4M3::kName) return RoundAll<E4M3>(x);
  if (format == E5M2::kName) return RoundAll<E5M2>(x);
  if (format == INT8::kName) return RoundAll<INT8>(x);
  throw std::invalid_argument("element format: got '" + format + "', expected e2m1, e2m3, e3m2, e4m3, e5m2 or int8");
}

// float [n] -> bit patterns of float16 or bfloat16 [n], and back.
Array<uint16_t> ToHalf(const Array<float>& x, bool bfloat16) {
  Array<uint16_t> out(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    out.mutable_data()[i] = bfloat16 ? FloatToBFloat16(x.data()[i]) : FloatToFloat16(x.data()[i]);
  }
  return out;
}
Array<float> FromHalf(const Array<uint16_t>& x, bool bfloat16) {
  Array<float> out(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    out.mutable_data()[i] = bfloat16 ? BFloat16ToFloat(x.data()[i]) : Float16ToFloat(x.data()[i]);
  }
  return out;
}

}  // namespace
}  // namespace mxort

PYBIND11_MODULE(_native, m) {
  using namespace mxort;
  m.doc() = "Tables and kernels of libmxort, called directly (no ONNX Runtime involved).";
  m.def("describe", &Describe, "Format constants, kernel table, CPU features and build of this library, as a dict.");
  m.def("code_objects", &CodeObjects, "GPU code objects of this build: [(source, architecture, bytes)].");
  m.def("round_to_element", &Round, py::arg("x").noconvert(), py::arg("format"), "float32 [n] -> (codes, values).");
  m.def("select_kernel", &SelectFor, py::arg("features"), py::arg("first"), py::arg("activation_format"),
        py::arg("accuracy_level"), py::arg("rows") = 1, py::arg("weight_format") = "mxfp4",
        "Name of the kernel that a CPU with these features would use.");
  m.def("float_to_half", &ToHalf, py::arg("x").noconvert(), py::arg("bfloat16"));
  m.def("half_to_float", &FromHalf, py::arg("x").noconvert(), py::arg("bfloat16"));
  BindLimits(m);
  BindQuantize(m);
  py::class_<Node>(m, "MatMul", "One operator with constant weights on a kernel of the table.")
      .def(py::init([](const Array<uint8_t>& codes, const Array<uint8_t>& scales, const Array<float>& column_scale,
                       const Array<float>& bias, int64_t k, int rotation, const std::string& activation_format,
                       int accuracy_level, const std::string& kernel, const std::string& weight_format) {
             const ConstantInputs inputs{codes, scales, column_scale, bias};
             return Node(inputs,
                         {k, inputs.N(), rotation, activation_format, accuracy_level, WeightFormatOf(weight_format)},
                         kernel);
           }),
           py::arg("codes").noconvert(), py::arg("scales").noconvert(), py::arg("column_scale").noconvert(),
           py::arg("bias").noconvert(), py::arg("K"), py::arg("rotation") = 1, py::arg("activation_format") = "none",
           py::arg("accuracy_level") = 0, py::arg("kernel") = "", py::arg("weight_format") = "mxfp4")
      .def_property_readonly(
          "kernel", [](const Node& node) { return node.KernelOf(1); }, "Kernel for one row of A.")
      .def("kernel_for", &Node::KernelOf, py::arg("rows"), "Name of the kernel that runs `rows` rows of A.")
      .def_property_readonly("packed_bytes", &Node::packed_bytes)
      .def_property_readonly("packed_address", &Node::packed_address, "Equal where two nodes share one packing.")
      .def("__call__", &Node::Run, py::arg("a"), py::arg("threads") = 1, "A [..., K] -> Y [..., N] of A's dtype.");
  BindDevices(m);
}
