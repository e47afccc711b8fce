"""A sum and the norm behind it become one operator where nothing is broadcast."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import mxort

HEAD = "(T[b,s,24] x, T[b,s,24] r) => (T[b,s,24] y, T[b,s,24] z) { a = Add(x, r) "
WEIGHTS = {"w": np.random.default_rng(1).standard_normal(24).astype(np.float32)}
BODY = "y = RMSNormalization<axis=-1, epsilon=0.00001>(a, w) z = Abs(a) }"
OPERATOR = "SkipSimplifiedLayerNormalization"


def build(tools, body=BODY, head=HEAD, weights=WEIGHTS):
    return tools.make_model(head + body, weights, opset=23)


def feeds():
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal((2, 5, 24)).astype(np.float32) for n in "xr"}


def exact(given):
    a = given["x"].astype(np.float64) + given["r"]
    return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) * WEIGHTS["w"], np.abs(a)


BOUND = 40 * 2.0**-24 * 16
"""Sums of 24, a root, a quotient, products, of numbers below 16."""


def test_both_outputs(fusing, tools):
    given = feeds()
    assert fusing(build(tools), given) == ["Abs", OPERATOR]
    assert fusing.report == {OPERATOR: {"fused": 1}}
    for outputs in (
        fusing.after,
        tools.run_reference(fusing.model, given),
    ):  # onnxruntime's kernel, and the function
        for y, want in zip(outputs, exact(given), strict=True):
            assert (np.abs(y - want) <= BOUND).all()


def test_a_sum_that_nothing_else_reads_is_no_output(fusing, tools):
    fusing(build(tools, BODY.replace("Abs(a)", "Abs(x)")), feeds())
    (node,) = [n for n in fusing.model.graph.node if n.op_type == OPERATOR]
    assert list(node.output)[1:] in ([], ["", "", ""])
    fusing.assert_near(2 * BOUND)


def test_onnxruntime_has_a_kernel_and_does_not_take_the_function(fusing, tools, tmp_path):
    fusing(build(tools))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(fusing.model.SerializeToString(), options)
    operators = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert sorted(operators) == ["Abs", OPERATOR]


def test_nodes_that_were_there_keep_their_meaning(fusing, tools):
    """Theirs may have an input more than the function."""
    body = f"y = RMSNormalization<axis=-1, epsilon=0.00001>(a, w) z = com.microsoft.{OPERATOR}(x, y, w, w) }}"
    fusing(build(tools, body), feeds())
    assert fusing.report == {OPERATOR: {"fused": 1}}
    assert not fusing.model.functions
    fusing.assert_near(4 * BOUND)


@pytest.mark.parametrize("shape", ["T[1,s,24]", "T[s,24]", "T[d,s,24]", "T[24]"])
def test_what_may_be_broadcast_is_left(fusing, tools, shape):
    assert OPERATOR not in fusing(build(tools, head=HEAD.replace("T[b,s,24] r", f"{shape} r")))
    reason = "the two that are added may be of different shapes"
    assert fusing.report == {OPERATOR: {"fused": 0, reason: 1}}


def test_another_axis_is_left(fusing, tools):
    wide = {"w": np.tile(WEIGHTS["w"], (5, 1))}
    model = build(tools, BODY.replace("axis=-1", "axis=1"), HEAD.replace("s,24", "5,24"), wide)
    assert OPERATOR not in fusing(model)
    assert fusing.report == {}


def test_standard_onnx_has_the_function_in_its_place(tools, tmp_path):
    text = (
        "(T[b,s,24] x) => (T[b,s,24] y) { m = MatMul(x, v) a = Add(x, m) "
        "y = RMSNormalization<axis=-1, epsilon=0.00001>(a, w) }"
    )
    weights = WEIGHTS | {"v": np.random.default_rng(7).standard_normal((24, 24)).astype(np.float32)}
    onnx.save(tools.make_model(text, weights, opset=23), tmp_path / "float.onnx")
    report = mxort.convert(tmp_path / "float.onnx", tmp_path / "mx.onnx", min_elements=0)
    assert report.fused == {OPERATOR: {"fused": 1}}
    mxort.export(tmp_path / "mx.onnx", tmp_path / "standard.onnx")
    before, after = (onnx.load(tmp_path / name) for name in ("mx.onnx", "standard.onnx"))
    assert {node.domain for node in after.graph.node} == {""}
    assert not after.functions
    given = {"x": feeds()["x"]}
    want, got = tools.run_onnxruntime(before, given)[0], tools.run_reference(after, given)[0]
    assert np.abs(got - want).max() <= 2 * BOUND
