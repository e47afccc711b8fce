"""A sum and the norm behind it become one operator where nothing is broadcast."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import mxort

HEAD = "(T[b,s,24] x, T[b,s,24] r) => (T[b,s,24] y, T[b,s,24] z) { a = Add(x, r) "
WEIGHTS = {n: np.random.default_rng(i).standard_normal(24).astype(np.float32) for i, n in enumerate("wc")}
FORMS = {
    "SkipLayerNormalization": "y = LayerNormalization<axis=-1, epsilon=0.00001>(a, w, c) z = Abs(a) }",
    "SkipSimplifiedLayerNormalization": "y = RMSNormalization<axis=-1, epsilon=0.00001>(a, w) z = Abs(a) }",
}


def feeds():
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal((2, 5, 24)).astype(np.float32) for n in "xr"}


def exact(operator, given):
    a = given["x"].astype(np.float64) + given["r"]
    if operator == "SkipLayerNormalization":
        centred = a - a.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * WEIGHTS["w"] + WEIGHTS["c"]
    else:
        y = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) * WEIGHTS["w"]
    return y, np.abs(a)


@pytest.mark.parametrize("operator", FORMS)
def test_forms(fusing, tools, operator):
    given = feeds()
    used = WEIGHTS if operator == "SkipLayerNormalization" else {"w": WEIGHTS["w"]}
    operators = fusing(tools.make_model(HEAD + FORMS[operator], used, opset=23), given)
    assert operators == ["Abs", operator]
    assert fusing.report == {"SkipLayerNormalization": {"fused": 1}}
    # Sums of 24, a root, a quotient, products, of numbers below 16.
    for outputs in (fusing.after, tools.run_reference(fusing.model, given)):  # its kernel, and its function
        for y, want in zip(outputs, exact(operator, given), strict=True):
            assert (np.abs(y - want) <= 40 * 2.0**-24 * 16).all()


def test_onnxruntime_has_a_kernel_and_does_not_take_the_function(fusing, tools, tmp_path):
    fusing(tools.make_model(HEAD + FORMS["SkipLayerNormalization"], WEIGHTS))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(fusing.model.SerializeToString(), options)
    operators = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert sorted(operators) == ["Abs", "SkipLayerNormalization"]


def test_nodes_that_were_there_keep_their_meaning(fusing, tools):
    """Theirs may have an input more than the function."""
    text = HEAD + (
        "y = LayerNormalization<axis=-1, epsilon=0.00001>(a, w, c) "
        "z = com.microsoft.SkipLayerNormalization(x, y, w, c, c) }"
    )
    fusing(tools.make_model(text, WEIGHTS), feeds())
    assert fusing.report == {"SkipLayerNormalization": {"fused": 1}}
    assert not fusing.model.functions
    fusing.assert_near(160 * 2.0**-24 * 16)


@pytest.mark.parametrize("operator", FORMS)
def test_a_sum_that_nothing_else_reads_is_no_output(fusing, tools, operator):
    body = FORMS[operator].replace("z = Abs(a)", "z = Abs(x)")
    used = WEIGHTS if operator == "SkipLayerNormalization" else {"w": WEIGHTS["w"]}
    fusing(tools.make_model(HEAD + body, used, opset=23), feeds())
    (node,) = [n for n in fusing.model.graph.node if n.op_type == operator]
    assert list(node.output)[1:] in ([], ["", "", ""])
    fusing.assert_near(80 * 2.0**-24 * 16)


@pytest.mark.parametrize("shape", ["T[1,s,24]", "T[s,24]", "T[d,s,24]", "T[24]"])
def test_what_may_be_broadcast_is_left(fusing, tools, shape):
    text = HEAD.replace("T[b,s,24] r", f"{shape} r") + FORMS["SkipLayerNormalization"]
    assert "SkipLayerNormalization" not in fusing(tools.make_model(text, WEIGHTS))
    reason = "the two that are added may be of different shapes"
    assert fusing.report == {"SkipLayerNormalization": {"fused": 0, reason: 1}}


def test_another_axis_is_left(fusing, tools):
    text = HEAD + FORMS["SkipLayerNormalization"].replace("axis=-1", "axis=1")
    wide = {n: np.tile(w, (5, 1)) for n, w in WEIGHTS.items()}
    assert "SkipLayerNormalization" not in fusing(tools.make_model(text.replace("s,24", "5,24"), wide))
    assert fusing.report == {}


def test_standard_onnx_has_the_function_in_its_place(tools, tmp_path):
    text = (
        "(T[b,s,24] x) => (T[b,s,24] y) { m = MatMul(x, v) a = Add(x, m) "
        "y = LayerNormalization<axis=-1, epsilon=0.00001>(a, w, c) }"
    )
    weights = WEIGHTS | {"v": np.random.default_rng(7).standard_normal((24, 24)).astype(np.float32)}
    onnx.save(tools.make_model(text, weights), tmp_path / "float.onnx")
    report = mxort.convert(tmp_path / "float.onnx", tmp_path / "mx.onnx", min_elements=0)
    assert report.fused == {"SkipLayerNormalization": {"fused": 1}}
    mxort.export(tmp_path / "mx.onnx", tmp_path / "standard.onnx")
    before, after = (onnx.load(tmp_path / name) for name in ("mx.onnx", "standard.onnx"))
    assert {node.domain for node in after.graph.node} == {""}
    assert not after.functions
    given = {"x": feeds()["x"]}
    want, got = tools.run_onnxruntime(before, given)[0], tools.run_reference(after, given)[0]
    assert np.abs(got - want).max() <= 80 * 2.0**-24 * 16
