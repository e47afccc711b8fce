"""converters/products/fused.py: onnxruntime's fused operators are the oracle."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import mxort
from same_products import assert_near, assert_same, exact, model, operators, run, sum_bound

K, N = 64, 48


def fused(op_type, inputs, **attributes):
    return helper.make_node(op_type, inputs, ["y"], name="f", domain="com.microsoft", **attributes)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("op_type", ["FusedMatMul", "TransposeMatMul"])
def test_a_product_with_transposes_and_a_factor(op_type, trans_a, trans_b, alpha):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 5, K), dtype=np.float32), exact(rng, K, N)
    x = np.ascontiguousarray(x.transpose(0, 2, 1)) if trans_a else x
    w = np.ascontiguousarray(w.T) if trans_b else w
    node = fused(op_type, ["x", "w"], transA=trans_a, transB=trans_b, alpha=alpha)
    assert_same(model([node], {"x": x}, {"w": w}), {"x": x}, sum_bound(K, x, w), gone=op_type)


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Softplus"])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_gemm_with_an_activation(activation, trans_b):
    rng = np.random.default_rng(1)
    x, w, c = (
        rng.standard_normal((5, K), dtype=np.float32),
        exact(rng, K, N),
        rng.standard_normal(N, dtype=np.float32),
    )
    attributes = {"activation_alpha": 0.25} if activation == "LeakyRelu" else {}
    node = fused(
        "FusedGemm", ["x", "w", "c"], activation=activation, transB=trans_b, alpha=0.5, beta=2.0, **attributes
    )
    proto = model([node], {"x": x}, {"w": np.ascontiguousarray(w.T) if trans_b else w, "c": c})
    assert_same(proto, {"x": x}, 2 * sum_bound(K, x, w), gone="FusedGemm")


@pytest.mark.parametrize("activation", ["", "Relu", "LeakyRelu", "HardSigmoid"])
@pytest.mark.parametrize("summed", [False, True])
def test_a_convolution_with_a_sum_and_an_activation(activation, summed):
    rng = np.random.default_rng(2)
    feeds = {"x": rng.standard_normal((2, K, 5, 6), dtype=np.float32)}
    weights = {"w": exact(rng, N, K, 1, 1), "b": rng.standard_normal(N, dtype=np.float32)}
    if summed:
        feeds["z"] = rng.standard_normal((2, N, 5, 6), dtype=np.float32)
    parameters = {"LeakyRelu": [0.25], "HardSigmoid": [0.2, 0.5]}.get(activation)
    attributes = {"activation": activation} | ({"activation_params": parameters} if parameters else {})
    node = fused(
        "FusedConv", ["x", "w", "b", *(["z"] if summed else [])], **(attributes if activation else {})
    )
    proto = model([node], feeds, weights)
    bound = 2 * sum_bound(K, feeds["x"], weights["w"])
    assert_same(proto, feeds, bound, gone="FusedConv", convert_conv=True)


HEADS, WIDTH = 4, 64


@pytest.mark.parametrize("sizes", [(WIDTH,) * 3, (WIDTH, WIDTH, 2 * WIDTH)])
@pytest.mark.parametrize("mask", ["", "row", "square"])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention(sizes, mask, scores, unidirectional):
    """The weight is small, so that softmax does not choose; then q, k and v of K = 64 products bound the error."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 5, WIDTH), dtype=np.float32)
    w = exact(rng, WIDTH, sum(sizes)) / np.float32(64)
    feeds, inputs = {"x": x}, ["x", "w", "b", "", "", ""]
    if mask:
        keep = np.ones((2, 5) if mask == "row" else (2, 5, 5), np.int32)
        keep[0, ..., 3:] = 0
        feeds["mask"], inputs[3] = keep, "mask"
    if scores:
        feeds["scores"], inputs[5] = rng.standard_normal((2, HEADS, 5, 5), dtype=np.float32), "scores"
    while not inputs[-1]:
        inputs.pop()
    more = {} if sizes[2] == WIDTH else {"qkv_hidden_sizes": sizes}
    node = fused("Attention", inputs, num_heads=HEADS, unidirectional=unidirectional, **more)
    proto = model([node], feeds, {"w": w, "b": rng.standard_normal(sum(sizes), dtype=np.float32)})
    # a score is a sum of 16 products of q and k, both below 8: their errors count 16 times 8 twice, then exp of them
    assert_same(proto, feeds, 300 * sum_bound(WIDTH, x, w), gone="Attention")


REASONS = {
    "batch": (
        fused("FusedMatMul", ["x", "w"], transBatchA=1),
        "a product whose batch is transposed is not converted",
    ),
    "activation": (
        fused("FusedGemm", ["m", "w"], activation="Erf"),
        "ends with Erf, which is not taken apart",
    ),
    "lengths": (
        fused("Attention", ["x", "w", "b", "lengths"], num_heads=HEADS),
        "a fused attention with a mask of lengths is not taken apart (export without attention fusion)",
    ),
}


@pytest.mark.parametrize(("node", "reason"), REASONS.values(), ids=REASONS)
def test_reasons(node, reason):
    rng = np.random.default_rng(4)
    feeds = {
        "x": np.ones((2, 5, K), np.float32),
        "m": np.ones((5, K), np.float32),
        "lengths": np.ones(2, np.int32),
    }
    weights = {"w": exact(rng, K, 3 * K), "b": np.zeros(3 * K, np.float32)}
    proto = model([node], {name: feeds[name] for name in node.input if name in feeds}, weights)
    report = mxort.convert(proto, min_elements=0)
    nbytes = sum(array.nbytes for name, array in weights.items() if name in node.input)
    assert [(site.reason, site.original_bytes) for site in report.skipped][:1] == [(reason, nbytes)]
    assert operators(report.model) == [node.op_type]


def test_an_optimised_model_of_onnxruntime(tmp_path):
    """What its optimiser makes of an encoder layer converts as the layer itself does."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 5, K), dtype=np.float32)
    weights = {"w": exact(rng, K, N), "v": exact(rng, N, K) / np.float32(16), "half": np.float32([0.5])}
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["b"], name="two"),
        helper.make_node("Mul", ["b", "half"], ["y"]),
    ]
    proto = model(nodes[1:], {"x": x}, weights)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert "FusedMatMul" in operators(optimised)
    report = mxort.convert(optimised, min_elements=0, accuracy_level=1)
    assert len(report.converted) == 2
    bound = 6 * 64 * 6 / 16 * 64 * np.abs(x).max() * 4 * 64 * np.finfo(np.float32).eps
    assert_near(run(report.model, {"x": x}, True), run(proto, {"x": x}), bound)
