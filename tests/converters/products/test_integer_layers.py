"""converters/products/integer_layers.py, against onnxruntime's kernels and the numbers that the integers stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import mxort
from same_products import assert_near, expressed, model, operators, run

K, N = 128, 96
REASON = "is quantised already (requantize rounds it again, with a loss)"
Y_STEP = 0.25


def integers(rng, *shape, columns, axis, zeros=True, dtype=np.int8):
    """({q, s, z}, the float numbers); scales for all, or for each index along ``axis``."""
    low, count = np.iinfo(dtype).min, shape[axis] if columns else 1
    q = rng.integers(low, low + 256, shape).astype(dtype)
    s = (rng.random(count) * 0.01 + 0.001).astype(np.float32)
    z = (
        (rng.integers(-20, 20, count) + low + 128).astype(dtype)
        if zeros
        else np.full(count, low + 128, dtype)
    )
    along = [-1 if i == axis else 1 for i in range(len(shape))]
    numbers = (q.astype(np.float32) - z.astype(np.float32).reshape(along)) * s.reshape(along)
    given = {"q": q, "s": s if columns else s.reshape(()), "z": z if columns else z.reshape(())}
    return given, numbers


def left(proto):
    return [site.reason for site in mxort.convert(proto, min_elements=0).skipped if site.node == "p"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_gemm(trans_a, trans_b, columns, quantised):
    """QGemm with a bias, a factor, transposes; its result float or quantised."""
    rng = np.random.default_rng(0)
    given, w = integers(rng, *((N, K) if trans_b else (K, N)), columns=columns, axis=1 - trans_b)
    w = w.T if trans_b else w
    x = rng.standard_normal((K, 5) if trans_a else (5, K), dtype=np.float32)
    step, zero = np.float32(0.03), np.uint8(128)
    given |= {"xs": step, "xz": zero, "c": rng.integers(-2000, 2000, N).astype(np.int32)}
    given |= {"ys": np.float32(Y_STEP), "yz": np.uint8(120)} if quantised else {}
    given = {name: np.asarray(array) for name, array in given.items()}
    extra = ["ys", "yz"] if quantised else []
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node(
            "QGemm",
            ["xq", "xs", "xz", "q", "s", "z", "c", *extra],
            ["yq" if quantised else "y"],
            name="p",
            domain="com.microsoft",
            alpha=0.5,
            transA=trans_a,
            transB=trans_b,
        ),
        *([helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"])] if quantised else []),
    ]
    proto = model(nodes, {"x": x}, given)
    floats, reasons = expressed(proto, requantize=True)
    assert not reasons and "QGemm" not in operators(floats)
    held = (np.clip(np.rint(x / step) + 128, 0, 255) - 128) * step
    held = held.T if trans_a else held
    want = 0.5 * (held.astype(np.float64) @ w + given["c"] * step * given["s"].astype(np.float64))
    bound = 2 * K * np.finfo(np.float32).eps * K * np.abs(held).max() * np.abs(w).max()
    if quantised:  # saturated where the sum is beyond; a value in the middle may go to either side
        want = np.clip(want, -120 * Y_STEP, 135 * Y_STEP)
        assert_near(run(floats, {"x": x}), run(proto, {"x": x}), Y_STEP * 1.001)
        bound += Y_STEP / 2 * 1.001
    assert_near(run(floats, {"x": x}), [want.astype(np.float32)], bound)
    assert left(proto) == [REASON]
    (site,) = mxort.convert(proto, requantize=True, min_elements=0).converted
    assert (site.node, site.K, site.N) == ("p", K, N) and "was int8" in site.note


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_attention(columns, static):
    """QAttention: what rounds its operand goes with it, where that is done anew for each input."""
    rng = np.random.default_rng(1)
    given, w = integers(rng, K, 3 * K, columns=columns, axis=1, zeros=False)
    given = {**given, "s": given["s"] * np.float32(0.1), "c": rng.standard_normal(3 * K, dtype=np.float32)}
    given["s"] = np.asarray(given["s"])
    w = w * np.float32(0.1)
    x = rng.standard_normal((2, 7, K), dtype=np.float32)
    head = (
        [helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"])]
        if static
        else [helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"])]
    )
    given |= {"xs": np.asarray(np.float32(0.03)), "xz": np.asarray(np.uint8(128))} if static else {}
    inputs = ["xq", "q", "c", "xs", "s", "", "xz", "z"]
    nodes = [
        *head,
        helper.make_node("QAttention", inputs, ["y"], name="p", domain="com.microsoft", num_heads=4),
    ]
    proto = model(nodes, {"x": x}, given)
    floats, reasons = expressed(proto, requantize=True)
    assert not reasons
    assert {"QAttention", "Attention", "DynamicQuantizeLinear"}.isdisjoint(operators(floats))
    held = (np.clip(np.rint(x / 0.03) + 128, 0, 255) - 128) * 0.03 if static else x
    q, k, v = np.split(held.astype(np.float64) @ w + given["c"], 3, axis=-1)
    heads = [part.reshape(2, 7, 4, K // 4).transpose(0, 2, 1, 3) for part in (q, k, v)]
    scores = heads[0] @ heads[1].transpose(0, 1, 3, 2) / np.sqrt(K // 4)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    want = (p / p.sum(-1, keepdims=True)) @ heads[2]
    want = want.transpose(0, 2, 1, 3).reshape(2, 7, K)
    got = run(floats, {"x": x})[0]
    # q and k err by sums of K floats; softmax passes on the error of its argument, here some tens of such sums
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    ort = run(proto, {"x": x})[0]
    assert np.abs(ort - want).max() < 0.1 * np.abs(want).max()  # its operand has 8 bits
    assert left(proto) == [REASON]
    (site,) = mxort.convert(proto, requantize=True, min_elements=0).converted
    assert (site.node, site.K, site.N) == ("p", K, 3 * K) and "was int8" in site.note


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 1)])
def test_static_conv(columns, kernel):
    rng = np.random.default_rng(2)
    given, w = integers(rng, N, K, *kernel, columns=columns, axis=0, zeros=False)
    x = rng.standard_normal((2, K, 6, 5), dtype=np.float32)
    step = np.float32(0.03)
    given |= {"xs": step, "xz": np.uint8(128), "ys": np.float32(Y_STEP), "yz": np.uint8(120)}
    given["c"] = rng.integers(-2000, 2000, N).astype(np.int32)
    given = {name: np.asarray(array) for name, array in given.items()}
    pads = [kernel[0] // 2, 0, kernel[0] // 2, 0]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node(
            "QLinearConv",
            ["xq", "xs", "xz", "q", "s", "z", "ys", "yz", "c"],
            ["yq"],
            name="p",
            kernel_shape=kernel,
            pads=pads,
        ),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    proto = model(nodes, {"x": x}, given)
    floats, reasons = expressed(proto, requantize=True)
    assert not reasons and {"QLinearConv", "Conv"}.isdisjoint(operators(floats))
    assert_near(run(floats, {"x": x}), run(proto, {"x": x}), Y_STEP * 1.001)
    held = (np.clip(np.rint(x / step) + 128, 0, 255) - 128) * step.astype(np.float64)
    padded = np.pad(held, ((0, 0), (0, 0), (pads[0], pads[0]), (0, 0)))
    want = sum(
        np.einsum("bchw,nc->bnhw", padded[:, :, i : i + 6], w[:, :, i, 0].astype(np.float64))
        for i in range(kernel[0])
    )
    want = want + (given["c"] * step * given["s"].astype(np.float64)).reshape(1, -1, 1, 1)
    want = np.clip(want, -120 * Y_STEP, 135 * Y_STEP).astype(np.float32)
    # not optimised: onnxruntime rounds a float weight to int8 itself where a product is between such operators
    assert_near(run(floats, {"x": x}, plain=True), [want], Y_STEP / 2 * 1.01)
    assert left(proto) == [REASON]
    (site,) = mxort.convert(proto, requantize=True, min_elements=0).converted
    assert (site.node, site.K, site.N) == ("p", K * kernel[0], N) and "was int8" in site.note


def test_dynamic_conv():
    rng = np.random.default_rng(3)
    given, w = integers(rng, N, K, 1, 1, columns=False, axis=0, dtype=np.uint8)
    x = rng.standard_normal((2, K, 6, 5), dtype=np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("ConvInteger", ["xq", "q", "xz", "z"], ["i"], name="p"),
        helper.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["factor"]),
        helper.make_node("Mul", ["f", "factor"], ["y"]),
    ]
    proto = model(nodes, {"x": x}, given)
    floats, reasons = expressed(proto, requantize=True)
    assert not reasons and {"ConvInteger", "DynamicQuantizeLinear"}.isdisjoint(operators(floats))
    want = np.einsum("bchw,nc->bnhw", x.astype(np.float64), w[:, :, 0, 0].astype(np.float64))
    bound = 2 * K * np.finfo(np.float32).eps * K * np.abs(x).max() * np.abs(w).max()
    assert_near(run(floats, {"x": x}), [want.astype(np.float32)], bound)
    assert left(proto) == [REASON]
    (site,) = mxort.convert(proto, requantize=True, min_elements=0).converted
    assert (site.node, site.K, site.N) == ("p", K, N)


def perceptron(rng):
    """A convolution and a Gemm, float."""
    weights = {
        "w": rng.standard_normal((N, K, 1, 1), dtype=np.float32) / 10,
        "b": rng.standard_normal(N, dtype=np.float32),
        "g": rng.standard_normal((N, N), dtype=np.float32) / 10,
        "h": rng.standard_normal(N, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "g", "h"], ["y"], name="gemm"),
    ]
    return nodes, weights


class Reader(CalibrationDataReader):
    def __init__(self, feeds):
        self._rows = iter(feeds)

    def get_next(self):
        return next(self._rows, None)


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_what_onnxruntime_writes(how, tmp_path):
    """Through its quantiser and back: about as near to the float model as int8 was, and no product of int8 left."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((3, K, 6, 5), dtype=np.float32)
    nodes, weights = perceptron(rng)
    proto = model(nodes, {"x": x}, weights)
    onnx.save(proto, tmp_path / "float.onnx")
    if how == "dynamic":
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QInt8,
                         op_types_to_quantize=["Conv", "MatMul", "Gemm"])  # fmt: skip
        gone = {"ConvInteger"}
    else:
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Reader([{"x": x}]),
                        quant_format=QuantFormat.QOperator, weight_type=QuantType.QInt8)  # fmt: skip
        gone = {"QLinearConv", "QGemm"}
    quantised = onnx.load(tmp_path / "int8.onnx")
    assert gone <= set(operators(quantised))
    floats, reasons = expressed(quantised, requantize=True)
    assert not reasons and gone.isdisjoint(operators(floats))
    want, int8, again = (run(m, {"x": x})[0] for m in (proto, quantised, floats))
    # a result in the middle between two steps may be rounded to either, where it is rounded
    steps = {t.name: numpy_helper.to_array(t) for t in quantised.graph.initializer}
    assert np.abs(again - want).max() <= np.abs(int8 - want).max() * 1.5 + steps.get("y_scale", 1e-6)
    report = mxort.convert(quantised, requantize=True, min_elements=0)
    assert len(report.converted) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"group": 2}, "a convolution of 2 groups has no MX operator"),
        ({"s": np.ones(7, np.float32)}, "is quantised already, with scales that do not fit its columns"),
        ({"c": np.ones(7, np.int32)}, "is quantised already, with a bias that does not fit its columns"),
    ],
)
def test_what_stays(change, reason):
    rng = np.random.default_rng(5)
    group = change.get("group", 1)
    given, _ = integers(rng, N, K // group, 1, 1, columns=False, axis=0, zeros=False)
    given |= {"xs": np.float32(0.03), "xz": np.uint8(128), "ys": np.float32(1), "yz": np.uint8(120)}
    given["c"] = rng.integers(-2000, 2000, N).astype(np.int32)
    given |= {key: value for key, value in change.items() if key != "group"}
    given = {name: np.asarray(array) for name, array in given.items()}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node(
            "QLinearConv", ["xq", "xs", "xz", "q", "s", "z", "ys", "yz", "c"], ["yq"], name="p", group=group
        ),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    proto = model(nodes, {"x": np.ones((1, K, 3, 3), np.float32)}, given)
    report = mxort.convert(proto, requantize=True, min_elements=0)
    assert [site.reason for site in report.skipped if site.node == "p"] == [reason]
    assert operators(report.model) == operators(proto)
