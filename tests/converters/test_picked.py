"""converters/picked.py: experts written as Gather of a stack and a product are named, with their bytes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import mxort
from mxort.conversion.inspection import inspect
from same_products import model

E, K, N = 8, 64, 32
RNG = np.random.default_rng(0)
STACK = RNG.standard_normal((E, K, N), dtype=np.float32)


def picking(op_type, between=()):
    x = RNG.standard_normal((3, 1, K), dtype=np.float32)
    ids = np.int64([1, 2, 1]) if op_type == "Gather" else np.int64([[1], [2], [1]])
    value, nodes = "w", [helper.make_node(op_type, ["stack", "ids"], ["w"], name="pick")]
    for i, (kind, settings) in enumerate(between):
        nodes.append(helper.make_node(kind, [value], [f"b{i}"], **settings))
        value = f"b{i}"
    nodes.append(helper.make_node("MatMul", ["x", value], ["y"], name="expert"))
    return model(nodes, {"x": x, "ids": ids}, {"stack": STACK})


@pytest.mark.parametrize("op_type", ["Gather", "GatherND"])
@pytest.mark.parametrize("between", [(), [("Identity", {}), ("Cast", {"to": 1})]])
def test_experts_are_named(op_type, between, tmp_path):
    proto = picking(op_type, between)
    report = mxort.convert(proto)
    rows = {site.node: site for site in report.skipped}
    assert rows["pick"].reason == f"picks from [{E}, {K}, {N}] what 'expert' multiplies by"
    assert rows["pick"].original_bytes == STACK.nbytes
    assert rows["expert"].reason == f"its weight is picked from [{E}, {K}, {N}] by {op_type} 'pick'"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    found = {site.node: site for site in inspect(tmp_path / "m.onnx").sites}
    assert (found["pick"].reason, found["pick"].original_bytes) == (rows["pick"].reason, STACK.nbytes)


def test_other_products_of_computed_operands():
    x = np.ones((2, 3, K), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "z"], ["y"], name="p")]
    report = mxort.convert(model(nodes, {"x": x, "z": np.ones((2, K, N), np.float32)}, {}))
    assert [site.reason for site in report.skipped] == ["no operand is constant"]


@pytest.mark.parametrize("kind", ["MatMul", "Conv", "Einsum"])
def test_a_router_is_never_converted_whatever_it_is_written_as(kind):
    """Its product decides what TopK chooses."""
    w = RNG.standard_normal((K, E * 4), dtype=np.float32)
    x = np.ones((1, K, 5, 5) if kind == "Conv" else (3, K), np.float32)
    given = {"w": w.T[..., None, None] if kind == "Conv" else w, "k": np.int64([2])}
    settings = {"equation": "bk,kn->bn"} if kind == "Einsum" else {}
    axis = 1 if kind == "Conv" else -1
    nodes = [
        helper.make_node(kind, ["x", "w"], ["s"], name="router", **settings),
        helper.make_node("Softmax", ["s"], ["p"], axis=axis),
        helper.make_node("TopK", ["p", "k"], ["y", "i"], name="choose", axis=axis),
    ]
    report = mxort.convert(model(nodes, {"x": x}, given), min_elements=0, convert_conv=True)
    assert not report.converted
    assert [site.reason for site in report.skipped] == ["router: decides what 'choose' chooses"]
    assert kind in [node.op_type for node in report.model.graph.node]
