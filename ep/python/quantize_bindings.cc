#include "python/quantize_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/parallel.h"
#include "kernels/quantize.h"
#include "kernels/solve.h"
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

// body(range) over the rows, in pieces for several threads: what a panel's tile takes, or a multiple of it.
void ForRows(int64_t rows, int threads, const std::function<void(Range)>& body) {
  constexpr int64_t kTile = 32;
  const py::gil_scoped_release release;
  ThreadedFor(threads)((rows + kTile - 1) / kTile,
                       [&](int64_t i) { body({i * kTile, std::min(rows, (i + 1) * kTile)}); });
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

using Panel = void (*)(const PanelArgs&, Range);

// (panel, values, moves) after `solve`; `values` are what is there before, or none.
py::tuple SolvePanel(Panel solve, const Array<float>& matrix, const Array<float>& panel, const Array<float>& scale,
                     const std::optional<Array<float>>& values, const std::string& format, int threads) {
  const Shape shape = ShapeOf(panel);
  const int64_t inputs = shape.empty() ? 0 : shape[0];
  if (shape.size() != 2 || inputs > kMostPanelInputs || ShapeOf(scale) != shape ||
      (values && ShapeOf(*values) != shape) || ShapeOf(matrix) != Shape{inputs, inputs}) {
    throw std::invalid_argument("panel: expected panel, scale and values of one shape [inputs, rows], at most " +
                                std::to_string(kMostPanelInputs) + " inputs, and a matrix [inputs, inputs]");
  }
  Array<float> rest(shape), result(shape), moves(shape);
  std::copy_n(panel.data(), panel.size(), rest.mutable_data());
  if (values) {
    std::copy_n(values->data(), values->size(), result.mutable_data());
  } else {
    std::fill_n(result.mutable_data(), result.size(), 0.0f);
  }
  const PanelArgs args = {
      WeightFormatOf(format), inputs, shape[1], matrix.data(), scale.data(), rest.mutable_data(), result.mutable_data(),
      moves.mutable_data()};
  ForRows(shape[1], threads, [&](Range rows) { solve(args, rows); });
  return py::make_tuple(rest, result, moves);
}

py::tuple Gptq(const Array<float>& upper, const Array<float>& wanted, const Array<float>& scale,
               const std::string& format, int threads) {
  const py::tuple all = SolvePanel(GptqPanel, upper, wanted, scale, std::nullopt, format, threads);
  return py::make_tuple(all[1], all[2]);
}

py::tuple Descend(const Array<float>& hessian, const Array<float>& gradient, const Array<float>& scale,
                  const Array<float>& values, const std::string& format, int threads) {
  return SolvePanel(DescendPanel, hessian, gradient, scale, values, format, threads);
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
  m.def("gptq_panel", &Gptq, py::arg("upper").noconvert(), py::arg("wanted").noconvert(), py::arg("scale").noconvert(),
        py::arg("format") = "mxfp4", py::arg("threads") = 0,
        "float32 [inputs, rows] -> (values, errors), see ep/kernels/solve.h; upper [inputs, inputs].");
  m.def("descend_panel", &Descend, py::arg("hessian").noconvert(), py::arg("gradient").noconvert(),
        py::arg("scale").noconvert(), py::arg("values").noconvert(), py::arg("format") = "mxfp4",
        py::arg("threads") = 0,
        "float32 [inputs, rows] -> (gradient, values, moves), see ep/kernels/solve.h; hessian [inputs, inputs].");
}

}  // namespace mxort
