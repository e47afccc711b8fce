"""converters/products/integer.py, against onnxruntime's kernels and the numbers that the integers stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import mxort
from same_products import assert_near, expressed, model, operators, run

K, N = 96, 40
REASON = "is quantised already (requantize rounds it again, with a loss)"


def weight(rng, *, columns, zeros, dtype=np.int8):
    """({inputs}, W [K, N] as float)."""
    low = np.iinfo(dtype).min
    count = N if columns else 1
    q = rng.integers(low, low + 256, (K, N)).astype(dtype)
    s = (rng.random(count) * 0.01 + 0.001).astype(np.float32)
    z = rng.integers(low + 100, low + 150, count).astype(dtype)
    given = {"q": q, "s": s if columns else s.reshape(()), "z": z if columns else z.reshape(())}
    numbers = (q.astype(np.float32) - (z.astype(np.float32) if zeros else 0)) * s
    return given, numbers.astype(np.float32)


def dynamic(zeros):
    inputs = ["xq", "q", "xz", *(["z"] if zeros else [])]
    return [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", inputs, ["i"], name="p"),
        helper.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["factor"]),
        helper.make_node("Mul", ["f", "factor"], ["y"]),
    ]


def fused(zeros):
    inputs = ["x", "q", "s", "z" if zeros else "", "c"]
    return [helper.make_node("DynamicQuantizeMatMul", inputs, ["y"], name="p", domain="com.microsoft")]


def to_float(zeros):
    inputs = ["xq", "q", "xs", "s", "xz", "z" if zeros else "", "c"]
    return [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulIntegerToFloat", inputs, ["y"], name="p", domain="com.microsoft"),
    ]


@pytest.mark.parametrize("nodes", [dynamic, fused, to_float])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_any(nodes, columns, zeros, dtype):
    rng = np.random.default_rng(0)
    given, numbers = weight(rng, columns=columns, zeros=zeros, dtype=dtype)
    c = rng.standard_normal(N, dtype=np.float32)
    x = rng.standard_normal((2, 3, K), dtype=np.float32)
    proto = model(nodes(zeros), {"x": x}, {**given, "c": c})
    floats, reasons = expressed(proto, requantize=True)
    assert not reasons
    assert operators(floats) == ["Transpose", "MatMul", *([] if nodes is dynamic else ["Add"])]
    want = x @ numbers + (0 if nodes is dynamic else c)
    bound = 2 * K * np.finfo(np.float32).eps * K * np.abs(x).max() * np.abs(numbers).max()
    assert_near(run(floats, {"x": x}), [want], bound)
    # onnxruntime rounds x to 8 bits: by half a step of its range, in each of K products
    step = (x.max() - x.min()) / 255
    assert_near(run(proto, {"x": x}), [want], K * step / 2 * np.abs(numbers).max() + bound)
    (left,) = (site for site in mxort.convert(proto, min_elements=0).skipped if site.node == "p")
    assert left.reason == REASON
    (site,) = mxort.convert(proto, requantize=True, min_elements=0).converted
    assert (site.node, site.K, site.N) == ("p", K, N) and "was int8" in site.note


def test_a_static_product():
    rng = np.random.default_rng(1)
    given, _ = weight(rng, columns=True, zeros=False)
    given["z"] = np.zeros(N, np.int8)
    x = rng.standard_normal((3, K), dtype=np.float32)
    given |= {"xs": np.float32(0.03), "xz": np.uint8(128), "ys": np.float32(0.2), "yz": np.uint8(120)}
    given = {name: np.asarray(array) for name, array in given.items()}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("QLinearMatMul", ["xq", "xs", "xz", "q", "s", "z", "ys", "yz"], ["yq"], name="p"),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    proto = model(nodes, {"x": x}, given)
    floats, reasons = expressed(proto, requantize=True)
    assert not reasons and "QLinearMatMul" not in operators(floats)
    # a sum that is near the middle between two steps may be rounded to either
    assert_near(run(floats, {"x": x}), run(proto, {"x": x}), 0.2 * 1.001)
    assert len(mxort.convert(proto, requantize=True, min_elements=0).converted) == 1


@pytest.mark.parametrize("columns", [False, True])
def test_what_onnxruntime_writes(tmp_path, columns):
    """A product and an LSTM, through quantize_dynamic and back: as near to the float model as int8 was."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 2, K), dtype=np.float32)
    weights = {
        "w": rng.standard_normal((K, N), dtype=np.float32) / 10,
        "lw": rng.standard_normal((2, 128, N), dtype=np.float32) / 6,
        "lr": rng.standard_normal((2, 128, 32), dtype=np.float32) / 6,
        "lb": rng.standard_normal((2, 256), dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="p"),
        helper.make_node(
            "LSTM", ["h", "lw", "lr", "lb"], ["y"], name="l", hidden_size=32, direction="bidirectional"
        ),
    ]
    proto = model(nodes, {"x": x}, weights)
    onnx.save(proto, tmp_path / "float.onnx")
    types = {"weight_type": QuantType.QInt8, "per_channel": columns}
    quantize_dynamic(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["MatMul", "LSTM"], **types
    )
    quantised = onnx.load(tmp_path / "int8.onnx")
    assert {"MatMulInteger", "DynamicQuantizeLSTM"} <= set(operators(quantised))
    floats, reasons = expressed(quantised, requantize=True)
    assert not reasons and not {"MatMulInteger", "DynamicQuantizeLSTM"} & set(operators(floats))
    want, int8, again = (run(m, {"x": x})[0] for m in (proto, quantised, floats))
    assert np.abs(again - want).max() <= 1.5 * np.abs(int8 - want).max() + 1e-6
    report = mxort.convert(quantised, requantize=True, min_elements=0)
    assert len(report.converted) == 5
    total = 2 * 128 * (N + 32) + K * N
    assert total <= sum(site.original_bytes for site in report.converted) <= 1.2 * total


def test_other_patterns_stay():
    rng = np.random.default_rng(3)
    given, _ = weight(rng, columns=False, zeros=False)
    nodes = dynamic(False)[:3]
    nodes[2].output[0] = "y"
    proto = model(nodes, {"x": np.ones((2, K), np.float32)}, given)
    report = mxort.convert(proto, requantize=True, min_elements=0)
    assert [s.reason for s in report.skipped if s.node == "p"] == [
        "is quantised already, and its result is not read by Mul alone"
    ]
    assert operators(report.model) == operators(proto)
