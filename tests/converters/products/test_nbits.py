"""converters/products/nbits.py: onnxruntime's MatMulNBits and GatherBlockQuantized are the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import mxort
from same_products import assert_near, expressed, model, operators, run

REASON = "is quantised already (requantize rounds it again, with a loss)"


def packed(codes, bits):
    """Integers [..., n] of ``bits`` -> bytes, the lowest bits first; n is filled up to whole bytes."""
    per_byte = 8 // bits
    short = -codes.shape[-1] % per_byte
    codes = np.pad(codes, [*[(0, 0)] * (codes.ndim - 1), (0, short)])
    parts = codes.reshape(*codes.shape[:-1], -1, per_byte).astype(np.uint8)
    return np.bitwise_or.reduce(parts << (bits * np.arange(per_byte, dtype=np.uint8)), axis=-1)


def quantised(rng, n, k, block, bits, *, zeros, flat=False, dtype=np.float32):
    """(inputs of MatMulNBits by name, the numbers they stand for [N, K])."""
    blocks = -(-k // block)
    codes = rng.integers(0, 2**bits, (n, blocks, block))
    scales = (rng.random((n, blocks)) * 0.1 + 0.01).astype(dtype)
    zero = rng.integers(0, 2**bits, (n, blocks))
    given = {"b": packed(codes, bits), "s": scales.reshape(-1) if flat else scales}
    if zeros:
        given["z"] = packed(zero, bits).reshape(-1) if flat else packed(zero, bits)
    else:
        zero[:] = 2 ** (bits - 1)
    numbers = (codes - zero[..., None]) * scales[..., None].astype(np.float64)
    return given, numbers.reshape(n, -1)[:, :k].astype(np.float32)


def nbits(n, k, block, bits, given, bias=False):
    inputs = ["x", "b", "s", "z" if "z" in given else "", "", "c" if bias else ""]
    while not inputs[-1]:
        inputs.pop()
    settings = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 1}
    return helper.make_node("MatMulNBits", inputs, ["y"], name="q", domain="com.microsoft", **settings)


@pytest.mark.parametrize("seed", range(24))
def test_any_product(seed):
    rng = np.random.default_rng(seed)
    bits, block = int(rng.choice([2, 4, 8])), int(rng.choice([16, 32, 64, 128]))
    n, k = int(rng.integers(8, 70)), int(rng.integers(1, 5)) * 32
    given, numbers = quantised(rng, n, k, block, bits, zeros=bool(seed % 2), flat=bool(seed % 3 == 0))
    bias = rng.standard_normal(n, dtype=np.float32)
    x = rng.standard_normal((2, 3, k), dtype=np.float32)
    proto = model([nbits(n, k, block, bits, given, bool(seed % 4))], {"x": x}, {**given, "c": bias})
    floats, reasons = expressed(proto, requantize=True)
    assert not reasons and "MatMulNBits" not in operators(floats)
    bound = 4 * k * np.finfo(np.float32).eps * np.abs(x).max() * np.abs(numbers).max() * k
    want = x.astype(np.float64) @ numbers.T.astype(np.float64) + (bias if seed % 4 else 0)
    assert_near(run(floats, {"x": x}), [want.astype(np.float32)], bound)
    if bits != 2:  # which onnxruntime has for some block sizes only
        assert_near(run(floats, {"x": x}), run(proto, {"x": x}), bound)


def test_converted_with_the_loss_stated():
    rng = np.random.default_rng(1)
    given, numbers = quantised(rng, 64, 128, 32, 4, zeros=False)
    x = rng.standard_normal((3, 128), dtype=np.float32)
    proto = model([nbits(64, 128, 32, 4, given)], {"x": x}, given)
    (left,) = mxort.convert(proto).skipped
    assert (left.node, left.op_type, left.reason) == ("q", "MatMulNBits", REASON)
    assert left.original_bytes == sum(array.nbytes for array in given.values())
    report = mxort.convert(proto, requantize=True, accuracy_level=1)
    (site,) = report.converted
    assert (site.node, site.K, site.N) == ("q", 128, 64)
    assert site.note.startswith("was 4-bit integers")
    assert site.original_bytes == left.original_bytes
    want = x @ numbers.T
    for library in (False, True):
        (got,) = run(report.model, {"x": x}, library)
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error < 2 * 10 ** (-site.sqnr_db / 20), (
            "the report's SQNR of the weight is the output's, about"
        )


def table(rng, v, k, block, bits, *, zeros):
    given, numbers = quantised(rng, v, k, block, bits, zeros=zeros)
    return {**given, "b": given["b"].reshape(v, -1)}, numbers


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_any_table(bits, zeros, block):
    rng = np.random.default_rng(2)
    given, numbers = table(rng, 50, 128, block, bits, zeros=zeros)
    ids = rng.integers(0, 50, (2, 3))
    inputs = ["b", "ids", "s", *(["z"] if zeros else [])]
    settings = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    node = helper.make_node(
        "GatherBlockQuantized", inputs, ["y"], name="e", domain="com.microsoft", **settings
    )
    proto = model([node], {"ids": ids}, given)
    floats, reasons = expressed(proto, requantize=True, convert_embedding=True)
    assert not reasons and operators(floats) == ["Gather"]
    assert_near(run(floats, {"ids": ids}), run(proto, {"ids": ids}), 2**-23 * np.abs(numbers).max())
    assert_near(run(floats, {"ids": ids}), [numbers[ids]], 2**-23 * np.abs(numbers).max())


def test_a_table_that_a_projection_shares():
    """As onnxruntime-genai builds it: the table is a view of the projection's integers. It is packed once."""
    rng = np.random.default_rng(3)
    given, _ = quantised(rng, 96, 64, 32, 4, zeros=False)
    settings = {"bits": 4, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
    nodes = [
        helper.make_node("Reshape", ["b", "flat"], ["t"]),
        helper.make_node(
            "GatherBlockQuantized", ["t", "ids", "s"], ["x"], domain="com.microsoft", **settings
        ),
        nbits(96, 64, 32, 4, given),
    ]
    nodes[2].output[0] = "logits"
    ids = rng.integers(0, 96, (2, 3))
    proto = model(nodes, {"ids": ids}, {**given, "flat": np.int64([96, -1])}, ["logits"])
    report = mxort.convert(proto, requantize=True)
    assert [(site.op_type, site.weight_format) for site in report.converted] == [
        ("Gather", "mxint8"),
        ("MatMul", "mxint8"),
    ]
    assert report.converted[1].converted_bytes == 0, "one table for both"
    kept = mxort.convert(proto, requantize=True, table_format="float")
    assert not kept.converted
    assert operators(kept.model) == operators(proto), "what stays is not made larger"


def test_what_is_not_read():
    rng = np.random.default_rng(4)
    given, _ = quantised(rng, 64, 64, 32, 4, zeros=False)
    node = nbits(64, 64, 32, 4, given)
    node.input.extend(["", "g"])
    proto = model([node], {"x": np.ones((2, 64), np.float32)}, {**given, "g": np.zeros(64, np.int32)})
    (site,) = mxort.convert(proto, requantize=True).skipped
    assert site.reason == "is quantised to 4 bits, or reordered, in a way that is not read"
