"""Smoothing in a conversion: folded into what comes before, combined with any algorithm, and told in the report."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import mxort
from gated import K, feeds, gated
from mxort.quantize import smoothquant


def outputs(path, data, session=mxort.InferenceSession):
    running = session(path, providers=["CPUExecutionProvider"])
    return np.concatenate([running.run(None, feed)[0] for feed in data]).astype(np.float64)


def relative_error(got, want):
    return float(((got - want) ** 2).sum() / (want**2).sum())


@pytest.mark.parametrize("algorithm", ["smoothquant", "smooth-gptq"])
def test_folding_is_exact_where_rounding_is(tmp_path, monkeypatch, algorithm):
    """Powers of two as scales and +-1 as weights: 1, 2 and 4 are E2M1 numbers, so nothing is lost anywhere."""
    asked = []

    def choose(x, absmax, layers, settings, alpha):
        scale = np.exp2(np.arange(len(absmax)) % 3).astype(np.float32)
        asked.append(len(layers.weights))
        return smoothquant.Smoothing(scale, 0.5, 1.0, 0.5)

    monkeypatch.setattr(smoothquant, "choose", choose)
    path, out = gated(tmp_path / "model.onnx", exact=True), tmp_path / "out.onnx"
    options = {"algorithm": algorithm, "accuracy_level": 1, "column_multiplier": False}
    report = mxort.convert(path, out, calibration=feeds(), **options)
    assert asked == [2, 1], "gate and up share an operand; the head's cannot be divided"
    notes = {site.node: site.note for site in report.converted}
    assert notes["gate"] == notes["up"].split(", ", 1)[1] == "smoothed with alpha 0.5, +3.0 dB"
    assert notes["head"] == "not smoothed: its input is computed by Softmax"
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    plain = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    scale = np.exp2(np.arange(K) % 3).astype(np.float32)
    np.testing.assert_array_equal(arrays["g_smoothed"], plain["g"] / scale)
    np.testing.assert_array_equal(arrays["c_smoothed"], plain["c"] / scale)
    up = next(n for n in onnx.load(out).graph.node if n.name == "up")
    np.testing.assert_array_equal(arrays[up.input[4]], plain["b"] / scale)
    np.testing.assert_array_equal(arrays[up.input[3]], 1 / scale)
    # Levels of accuracy promise 1e-6 for each of four products in a row; their errors may add up.
    data = feeds(2, seed=2)
    assert relative_error(outputs(out, data), outputs(path, data)) ** 0.5 < 8e-6
    assert relative_error(outputs(out, data), outputs(path, data)) > 0, "compared with itself"


@pytest.mark.parametrize("activation_format", ["none", "mxfp4"])
def test_smoothing_outliers_brings_the_model_nearer(tmp_path, activation_format):
    path, data, other = gated(tmp_path / "model.onnx"), feeds(), feeds(4, seed=3)
    want, errors = outputs(path, other), {}
    # Rotated, because there an outlier spoils a whole block; where there is no outlier nothing needs smoothing.
    options = {"activation_format": activation_format, "rotation": 32}
    for algorithm in ("rtn", "smoothquant", "smooth-gptq"):
        out = tmp_path / f"{algorithm}.onnx"
        calibration = None if algorithm == "rtn" else data
        mxort.convert(path, out, algorithm=algorithm, calibration=calibration, **options)
        errors[algorithm] = relative_error(outputs(out, other), want)
    assert errors["smooth-gptq"] < errors["smoothquant"] < errors["rtn"]


def test_the_calibration_run_sees_what_the_converted_model_computes(tmp_path, monkeypatch):
    """The statistics of `down` are of its divided operand in the converted model."""
    seen = {}
    original = mxort.conversion.weights.Packer._calibrated

    def spy(self, site, statistics):
        seen[site.name] = statistics
        return original(self, site, statistics)

    monkeypatch.setattr(mxort.conversion.weights.Packer, "_calibrated", spy)
    path, out, data = gated(tmp_path / "model.onnx"), tmp_path / "out.onnx", feeds()
    mxort.convert(path, out, algorithm="smooth-gptq", smooth_alpha="0.5", accuracy_level=1, calibration=data)
    proto = onnx.load(out)
    proto.graph.output.append(onnx.ValueInfoProto(name="m"))
    onnx.save(proto, out)
    running = mxort.InferenceSession(out, providers=["CPUExecutionProvider"])
    m = np.concatenate([running.run(["m"], feed)[0] for feed in data]).astype(np.float64)
    hessian = m.T @ m / len(m)
    np.testing.assert_allclose(seen["down"].hessian, hessian, rtol=1e-3, atol=1e-4 * np.abs(hessian).max())


def test_a_fixed_alpha(tmp_path):
    report = mxort.convert(
        gated(tmp_path / "model.onnx"),
        tmp_path / "out.onnx",
        algorithm="smoothquant",
        smooth_alpha="0.7",
        calibration=feeds(),
    )
    assert "smoothed with alpha 0.7" in next(s.note for s in report.converted if s.node == "gate")


def test_an_unknown_alpha(tmp_path):
    with pytest.raises(
        mxort.MxortError, match=r"unknown smooth_alpha: got '0\.55', expected one of auto, 0\.1"
    ):
        mxort.convert(gated(tmp_path / "model.onnx"), tmp_path / "out.onnx", smooth_alpha="0.55")


def test_a_weight_with_two_operands_is_left_as_it_is(tmp_path):
    """Divided for one of them it would be wrong for the other."""
    proto = onnx.load(gated(tmp_path / "model.onnx"))
    next(n for n in proto.graph.node if n.name == "head").input[1] = "wd"
    onnx.save(proto, tmp_path / "model.onnx")
    report = mxort.convert(
        tmp_path / "model.onnx", tmp_path / "out.onnx", algorithm="smoothquant", calibration=feeds()
    )
    notes = {site.node: site.note for site in report.converted}
    assert notes["down"] == "not smoothed: its weight is used elsewhere"


def test_a_weight_with_a_nan_stops_smoothing(tmp_path):
    """Its node stays float, and so must what comes before it."""
    proto = onnx.load(gated(tmp_path / "model.onnx"))
    tensor = next(t for t in proto.graph.initializer if t.name == "wu")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 4] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, "wu"))
    onnx.save(proto, tmp_path / "model.onnx")
    report = mxort.convert(
        tmp_path / "model.onnx", tmp_path / "out.onnx", algorithm="smoothquant", calibration=feeds()
    )
    assert {s.node for s in report.skipped} == {"up"}
    assert next(s.note for s in report.converted if s.node == "gate") == "not smoothed: no alpha is better"
    assert "g" in {t.name for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
