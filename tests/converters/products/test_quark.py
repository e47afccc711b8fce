"""converters/products/quark.py: the operator's rounding, written down once more here, is the oracle."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import mxort
from mxort.conversion import selection
from mxort.conversion.recipe import Recipe
from same_products import assert_near, model, operators, run, sum_bound

K, N = 96, 40
MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def rounded_block(block):
    """OCP's conversion: scale 2^(floor(log2(max)) - 2), to the nearest of eight magnitudes, ties to the even code."""
    largest = max(abs(float(v)) for v in block)
    if largest == 0:
        return [0.0] * len(block)
    scale = 2.0 ** (math.floor(math.log2(largest)) - 2)
    result = []
    for v in block:
        size = abs(float(v)) / scale
        nearest = min(range(8), key=lambda code: (abs(MAGNITUDES[code] - size), code % 2))
        result.append(math.copysign(MAGNITUDES[nearest] * scale, float(v)))
    return result


def rounded(array, axis):
    moved = np.moveaxis(np.asarray(array, np.float32), axis, -1)
    rows = [
        [v for start in range(0, len(row), 32) for v in rounded_block(row[start : start + 32])]
        for row in moved.reshape(-1, moved.shape[-1])
    ]
    return np.moveaxis(np.float32(rows).reshape(moved.shape), -1, axis)


def fake(source, target, axis, name="MXQuantizeDequantize", domain="com.amd.quark", **more):
    settings = {"element_dtype": "fp4_e2m1", "axis": axis, "block_size": 32, "rounding_mode": 2} | more
    return helper.make_node(name, [source], [target], name=f"round {source}", domain=domain, **settings)


def build(nodes, feeds, weights):
    proto = model(nodes, feeds, weights)
    proto.opset_import.extend(
        [helper.make_opsetid("com.amd.quark", 1), helper.make_opsetid("com.vai.quantize", 1)]
    )
    return proto


def plain(weights, nodes, feeds):
    """The model with the weights rounded beforehand, run by onnxruntime."""
    return run(model(nodes, feeds, weights), feeds)


WEIGHTS = {"MXQuantizeDequantize": "com.amd.quark", "MXFixNeuron": "com.vai.quantize"}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("k", [K, 80])
def test_a_weight_becomes_what_it_is_rounded_to(name, gemm, k):
    """80: the last block of a row is a short one."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((N, k) if gemm else (k, N), dtype=np.float32)
    x = rng.standard_normal((3, k), dtype=np.float32)
    axis = 1 if gemm else 0
    op_type, settings = ("Gemm", {"transB": 1}) if gemm else ("MatMul", {})
    product = helper.make_node(op_type, ["x", "r"], ["y"], name="p", **settings)
    proto = build([fake("w", "r", axis, name, WEIGHTS[name]), product], {"x": x}, {"w": w})
    report = mxort.convert(proto, accuracy_level=1)
    (site,) = report.converted
    assert (site.node, site.algorithm, site.sqnr_db, site.K) == ("p", "checkpoint", np.inf, k)
    assert site.original_bytes == w.nbytes
    assert not report.warnings
    want = plain({"r": rounded(w, axis)}, [product], {"x": x})
    for library in (False, True):
        assert_near(run(report.model, {"x": x}, library), want, sum_bound(k, x, w))


def test_a_rounded_operand_is_rounded_by_the_operator():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((3, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
    nodes = [
        fake("x", "rx", 1),
        fake("w", "r", 0),
        helper.make_node("MatMul", ["rx", "r"], ["y"], name="p"),
    ]
    report = mxort.convert(build(nodes, {"x": x}, {"w": w}))
    (site,) = report.converted
    assert (site.activation_format, site.weight_format) == ("mxfp4", "mxfp4")
    assert operators(report.model) == ["MatMulMXFP4"]
    assert not report.warnings


def test_what_no_product_reads_is_rounded_in_the_file():
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((3, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
    b = rng.standard_normal(N, dtype=np.float32)
    nodes = [
        fake("w", "r", 0),
        fake("b", "rb", 0),
        helper.make_node("MatMul", ["x", "r"], ["m"], name="p"),
        helper.make_node("Add", ["m", "rb"], ["y"]),
    ]
    report = mxort.convert(build(nodes, {"x": x}, {"w": w, "b": b}), accuracy_level=1)
    assert operators(report.model) == ["MatMulMXFP4"]
    want = plain({"r": rounded(w, 0), "rb": rounded(b, 0)}, nodes[2:], {"x": x})
    assert_near(run(report.model, {"x": x}, True), want, sum_bound(K, x, w))


def test_operators_that_stay_are_a_warning():
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((3, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
    nodes = [fake("w", "r", 0), helper.make_node("MatMul", ["x", "r"], ["m"], name="p"), fake("m", "y", 1)]
    report = mxort.convert(build(nodes, {"x": x}, {"w": w}))
    assert len(report.converted) == 1
    (warning,) = report.warnings
    assert warning.startswith("1 x MXQuantizeDequantize stay, on activations")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"element_dtype": "fp8_e4m3"}, "is rounded to fp8_e4m3 at each run (MXQuantizeDequantize)"),
        ({"block_size": 16}, "is rounded to fp4_e2m1 at each run (MXQuantizeDequantize)"),
    ],
)
def test_other_roundings_stay(more, reason):
    w = np.ones((K, N), np.float32)
    nodes = [fake("w", "r", 0, **more), helper.make_node("MatMul", ["x", "r"], ["y"], name="p")]
    made = ir.from_proto(build(nodes, {"x": np.ones((3, K), np.float32)}, {"w": w}))
    sites, warnings = selection.find(made, Recipe())
    assert [site.skip for site in sites] == [reason]
    assert len(warnings) == 1


def test_rounded_along_its_columns():
    """Blocks lie along the other axis, which no operator says: the product stays."""
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((3, K), dtype=np.float32), rng.standard_normal((K, 64), dtype=np.float32)
    nodes = [fake("w", "r", 1), helper.make_node("MatMul", ["x", "r"], ["y"], name="p")]
    report = mxort.convert(build(nodes, {"x": x}, {"w": w}))
    assert [site.reason for site in report.skipped] == [
        "is rounded along its columns at each run (MXQuantizeDequantize)"
    ]


def test_a_recipe_may_leave_a_product():
    """Its weight is then rounded in the file."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((3, K), dtype=np.float32), rng.standard_normal((K, N), dtype=np.float32)
    nodes = [fake("w", "r", 0), helper.make_node("MatMul", ["x", "r"], ["y"], name="p")]
    report = mxort.convert(build(nodes, {"x": x}, {"w": w}), exclude=("p",))
    (tensor,) = report.model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), rounded(w, 0))
