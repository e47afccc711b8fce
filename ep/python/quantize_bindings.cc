#include "python/quantize_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/parallel.h"
#include "kernels/quantize.h"
#include "python/arrays.h"

namespace py = pybind11;

namespace mxort {
namespace {

ScaleRule RuleOf(const std::string& name) {
  if (name == "floor") return ScaleRule::kFloor;
  if (name == "even") return ScaleRule::kEven;
  if (name == "rceil") return ScaleRule::kRceil;
  if (name == "mse") return ScaleRule::kMse;
  throw std::invalid_argument("scale rule: got '" + name + "', expected one of floor, even, rceil, mse");
}

constexpr int64_t kMostPieces = 1024;

// body(range) over the rows, in pieces for several threads.
void ForRows(int64_t rows, int threads, const std::function<void(Range)>& body) {
  const py::gil_scoped_release release;
  const int64_t pieces = std::min(rows, kMostPieces);
  ThreadedFor(threads)(pieces, [&](int64_t i) { body({rows * i / pieces, rows * (i + 1) / pieces}); });
}

void CheckRows(const Array<float>& w) {
  if (w.ndim() != 2) throw std::invalid_argument("weights: got rank " + std::to_string(w.ndim()) + ", expected 2");
}

// (codes, scales, column_scale) of rows, each with the best of the multipliers.
py::tuple QuantizeBest(const Array<float>& w, const std::vector<float>& multipliers, const std::string& rule_name,
                       const std::string& format_name, int threads) {
  CheckRows(w);
  for (const float multiplier : multipliers) {
    if (!(multiplier > 0) || !std::isfinite(multiplier)) {
      throw std::invalid_argument("multipliers: got " + std::to_string(multiplier) + ", expected finite ones above 0");
    }
  }
  const ScaleRule rule = RuleOf(rule_name);
  const WeightFormat format = WeightFormatOf(format_name);
  const int64_t n = w.shape(0), k = w.shape(1), blocks = BlocksOf(k);
  Array<uint8_t> codes({n, blocks * BlockBytes(format)}), scales({n, blocks});
  Array<float> column_scale(n);
  const QuantizeArgs args = {w.data(),
                             k,
                             format,
                             rule,
                             codes.mutable_data(),
                             scales.mutable_data(),
                             multipliers.data(),
                             static_cast<int>(multipliers.size()),
                             column_scale.mutable_data()};
  if (multipliers.empty()) std::fill_n(column_scale.mutable_data(), n, 1.0f);
  ForRows(n, threads, [&](Range rows) { QuantizeWeights(args, rows); });
  return py::make_tuple(codes, scales, column_scale);
}

py::tuple Quantize(const Array<float>& w, const std::string& rule, const std::string& format, int threads) {
  const py::tuple all = QuantizeBest(w, {}, rule, format, threads);
  return py::make_tuple(all[0], all[1]);
}

// (noise, signal) of each row.
py::tuple SumsOfRows(const Array<float>& w, const Array<uint8_t>& codes, const Array<uint8_t>& scales,
                     const Array<float>& column_scale, const std::string& format_name, int threads) {
  CheckRows(w);
  const WeightFormat format = WeightFormatOf(format_name);
  const int64_t n = w.shape(0), k = w.shape(1), blocks = BlocksOf(k);
  if (ShapeOf(codes) != Shape{n, blocks * BlockBytes(format)} || ShapeOf(scales) != Shape{n, blocks} ||
      ShapeOf(column_scale) != Shape{n}) {
    throw std::invalid_argument("codes, scales, column_scale: expected the shapes of " + std::to_string(n) +
                                " rows of " + std::to_string(k) + " elements in " + format_name);
  }
  Array<double> noise(n), signal(n);
  const RowSumsArgs args = {w.data(),
                            k,
                            format,
                            codes.data(),
                            scales.data(),
                            column_scale.data(),
                            noise.mutable_data(),
                            signal.mutable_data()};
  ForRows(n, threads, [&](Range rows) { SumRows(args, rows); });
  return py::make_tuple(noise, signal);
}

}  // namespace

void BindQuantize(py::module_& m) {
  m.def("quantize_weights", &Quantize, py::arg("weights").noconvert(), py::arg("rule"), py::arg("format") = "mxfp4",
        py::arg("threads") = 0,
        "float32 [N, K] in C order -> (codes uint8 [N, ceil(K/32)*bits*4], scales uint8 [N, ceil(K/32)]).");
  m.def("quantize_best", &QuantizeBest, py::arg("weights").noconvert(), py::arg("multipliers"), py::arg("rule"),
        py::arg("format") = "mxfp4", py::arg("threads") = 0,
        "The same with each row divided by the multiplier of least error: (codes, scales, column_scale float32 [N]).");
  m.def("sums_of_rows", &SumsOfRows, py::arg("weights").noconvert(), py::arg("codes").noconvert(),
        py::arg("scales").noconvert(), py::arg("column_scale").noconvert(), py::arg("format") = "mxfp4",
        py::arg("threads") = 0, "float64 [N] each: sums of (w - dequantised w)^2 and of w^2.");
}

}  // namespace mxort
