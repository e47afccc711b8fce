"""converters/products/dequantize.py: what is MXFP4 keeps its codes bit for bit; onnx.reference is the oracle."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import mxort
from mxort.formats import E2M1, unpack_codes
from same_products import assert_near, exact, expressed, model, operators, run, sum_bound

AGAIN = "is quantised already (requantize rounds it again, with a loss)"
K, N = 96, 40


def standard(rng, *, turned, gemm=False):
    """The standard's form: FLOAT4E2M1 with FLOAT8E8M0 -> (model, codes [N, K], scale bytes [N, K / 32])."""
    codes, scales = rng.integers(0, 16, (N, K), np.uint8), rng.integers(100, 140, (N, K // 32), np.uint8)
    data, factors = (codes, scales) if turned else (codes.T, scales.T)
    data = np.ascontiguousarray(data).view(ml_dtypes.float4_e2m1fn)
    factors = np.ascontiguousarray(factors).view(ml_dtypes.float8_e8m0fnu)
    settings = {"axis": 1 if turned else 0, "block_size": 32, "output_dtype": TensorProto.FLOAT}
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="dq", **settings)]
    weight = "w"
    if turned and not gemm:
        nodes.append(helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]))
        weight = "t"
    kind = ("Gemm", {"transB": int(turned)}) if gemm else ("MatMul", {})
    nodes.append(helper.make_node(kind[0], ["x", weight], ["y"], name="p", **kind[1]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", N])],
        [numpy_helper.from_array(data, "q"), numpy_helper.from_array(factors, "s")],
    )
    opsets = [helper.make_opsetid("", 24)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=12), codes, scales


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("gemm", [False, True])
def test_the_standard_form_keeps_its_bytes(turned, gemm):
    rng = np.random.default_rng(0)
    proto, codes, scales = standard(rng, turned=turned, gemm=gemm)
    report = mxort.convert(proto, accuracy_level=1)
    (site,) = report.converted
    assert (site.node, site.algorithm, site.sqnr_db, site.K, site.N) == ("p", "checkpoint", np.inf, K, N)
    assert site.original_bytes == codes.size // 2 + scales.size
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in report.model.graph.initializer}
    node = next(node for node in report.model.graph.node if node.domain == "mxort")
    np.testing.assert_array_equal(unpack_codes(tensors[node.input[1]], E2M1), codes)
    np.testing.assert_array_equal(tensors[node.input[2]], scales)
    x = rng.standard_normal((3, K), dtype=np.float32)
    want = ReferenceEvaluator(proto).run(None, {"x": x})
    largest = np.abs(want[0]).max()
    for library in (False, True):
        # the scales differ by 2^40: the largest products alone decide, and K sums of them
        assert_near(run(report.model, {"x": x}, library), want, K * 2**-22 * largest)


def test_the_standard_form_is_not_rounded_again_by_a_recipe():
    proto, _, _ = standard(np.random.default_rng(1), turned=False)
    (site,) = mxort.convert(proto, weight_format="mxint8", rotation=32).converted
    assert (site.weight_format, site.rotation, site.sqnr_db) == ("mxfp4", 1, np.inf)


def integers(rng, *, block, axis, dtype=np.int8, zeros=False, power=True, doubled=True):
    """int8 numbers that are twice E2M1's, with scales in blocks."""
    shape = [K, N]
    numbers = 2 * exact(rng, *shape) if doubled else rng.integers(-7, 8, shape)
    blocks = list(shape)
    blocks[axis] //= block
    scales = np.exp2(rng.integers(-6, 3, blocks)) if power else rng.random(blocks) + 0.5
    given = {"q": numbers.astype(dtype), "s": scales.astype(np.float32)}
    if zeros:
        point = rng.integers(1, 4, blocks).astype(dtype)
        given["q"] = (given["q"] + np.repeat(point, block, axis)).astype(dtype)
        given["z"] = point
    weight = numbers.astype(np.float32) * np.repeat(given["s"], block, axis)
    inputs = ["q", "s", *(["z"] if zeros else [])]
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["w"], name="dq", axis=axis, block_size=block),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="p"),
    ]
    x = rng.standard_normal((3, K), dtype=np.float32)
    return model(nodes, {"x": x}, given, opset=21), {"x": x}, weight


@pytest.mark.parametrize(("block", "axis"), [(32, 0), (16, 0), (96, 0), (32, 0)])
@pytest.mark.parametrize("zeros", [False, True])
def test_numbers_that_are_mxfp4_lose_nothing(block, axis, zeros):
    proto, feeds, weight = integers(np.random.default_rng(2), block=block, axis=axis, zeros=zeros)
    report = mxort.convert(proto, accuracy_level=1, min_elements=0)
    if block == 16:  # two scales in a block of 32: sometimes MXFP4 can say both, here not
        assert [site.reason for site in report.skipped] == [AGAIN]
        return
    (site,) = report.converted
    assert site.sqnr_db == np.inf
    want = run(proto, feeds, plain=True)
    for library in (False, True):
        assert_near(run(report.model, feeds, library), want, sum_bound(K, feeds["x"], weight))


def test_a_scale_for_each_column_or_for_all():
    """Powers of two, of which MXFP4's scales are some."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, K), dtype=np.float32)
    numbers = (2 * exact(rng, K, N)).astype(np.int8)
    for scales, settings in ((np.exp2(rng.integers(-3, 3, N)), {"axis": 1}), (np.float32(0.25), {})):
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"], **settings),
            helper.make_node("MatMul", ["x", "w"], ["y"], name="p"),
        ]
        given = {"q": numbers, "s": np.asarray(scales, np.float32)}
        proto = model(nodes, {"x": x}, given, opset=13)
        report = mxort.convert(proto, accuracy_level=1)
        assert [site.sqnr_db for site in report.converted] == [np.inf]
        bound = sum_bound(K, x, numbers * np.float32(8))
        assert_near(run(report.model, {"x": x}, True), run(proto, {"x": x}, plain=True), bound)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.int4])
def test_others_are_rounded_again_on_request(axis, zeros, dtype):
    rng = np.random.default_rng(4)
    block = 8 if axis == 1 else 32
    proto, feeds, weight = integers(rng, block=block, axis=axis, zeros=zeros, power=False, doubled=False)
    if dtype is not np.int8:
        for tensor in proto.graph.initializer:
            if tensor.name in "qz":
                numbers = np.clip(numpy_helper.to_array(tensor), -8, 7)
                tensor.CopyFrom(numpy_helper.from_array(numbers.astype(dtype), tensor.name))
    assert [site.reason for site in mxort.convert(proto).skipped] == [AGAIN]
    floats, reasons = expressed(proto, requantize=True)
    assert not reasons and "DequantizeLinear" not in operators(floats)
    assert_near(run(floats, feeds), run(proto, feeds, plain=True), sum_bound(K, feeds["x"], weight))
    (site,) = mxort.convert(proto, requantize=True).converted
    assert site.note.startswith("was int") and 10 < site.sqnr_db < 40


def test_what_a_recipe_leaves_is_not_made_larger():
    proto, _, _ = integers(np.random.default_rng(5), block=32, axis=0, power=False, doubled=False)
    for options in ({"exclude": ("p",)}, {"op_types": ("Gemm",)}, {"min_elements": 10**6}):
        report = mxort.convert(proto, requantize=True, **options)
        assert operators(report.model) == ["DequantizeLinear", "MatMul"]


def test_activations_and_other_readers_stay():
    rng = np.random.default_rng(6)
    proto, _, _ = integers(rng, block=32, axis=0, power=False, doubled=False)
    proto.graph.node.append(helper.make_node("Relu", ["w"], ["r"]))
    proto.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None))
    report = mxort.convert(proto, requantize=True)
    reason = "is quantised already (DequantizeLinear), and not read by products alone"
    assert [site.reason for site in report.skipped] == [reason]
    assert operators(report.model) == operators(proto)
