"""GroupQueryAttention nodes of com.microsoft get this library's kernel, or keep theirs and say why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort
from mxort.converters import attention
from op_model import session

HEADS, KV_HEADS, SIZE, WIDTH = 4, 2, 32, 64
INFO = helper.make_tensor_value_info


def decoder(
    *, packed: bool = True, cache: int = TensorProto.FLOAT, extra: tuple[str, ...] = (), **attributes: Any
) -> onnx.ModelProto:
    """x [b, s, 64] -> a product, attention over a cache, and a product."""
    rng = np.random.default_rng(0)
    all_heads = (HEADS + 2 * KV_HEADS) * SIZE
    table = np.arange(300)[:, None] * 10.0 ** -np.arange(SIZE // 2)
    weights = {
        "w": rng.standard_normal((WIDTH, all_heads)) / 8,
        "o": rng.standard_normal((HEADS * SIZE, WIDTH)) / 8,
        "cos": np.cos(table),
        "sin": np.sin(table),
    }
    nodes = [helper.make_node("MatMul", ["x", "w"], ["qkv"], name="qkv")]
    query = ["qkv", "", ""]
    if not packed:
        split = numpy_helper.from_array(np.array([HEADS, KV_HEADS, KV_HEADS]) * SIZE, "parts")
        query = ["q", "k", "v"]
        nodes.append(helper.make_node("Split", ["qkv", "parts"], query, axis=-1))
    values = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1} | attributes
    inputs = [*query, "past_key", "past_value", "last", "total", "cos", "sin", *extra]
    names = ["a", "present_key", "present_value"]
    node = helper.make_node(attention.NAME, inputs, names, name="attention", domain="com.microsoft", **values)
    nodes += [node, helper.make_node("MatMul", ["a", "o"], ["y"], name="o")]
    kv = ["b", KV_HEADS, "past", SIZE]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            INFO("x", TensorProto.FLOAT, ["b", "s", WIDTH]),
            INFO("past_key", cache, kv),
            INFO("past_value", cache, kv),
            INFO("last", TensorProto.INT32, ["b"]),
            INFO("total", TensorProto.INT32, [1]),
            *(INFO(name, TensorProto.INT64, ["b", "s"]) for name in extra if name),
        ],
        [
            INFO("y", TensorProto.FLOAT, ["b", "s", WIDTH]),
            INFO("present_key", cache, ["b", KV_HEADS, "all", SIZE]),
            INFO("present_value", cache, ["b", KV_HEADS, "all", SIZE]),
        ],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    if not packed:
        graph.initializer.append(split)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feeds(length: int, past: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    kv = rng.standard_normal((2, 1, KV_HEADS, past, SIZE)).astype(np.float32)
    return {
        "x": rng.standard_normal((1, length, WIDTH)).astype(np.float32),
        "past_key": kv[0],
        "past_value": kv[1],
        "last": np.array([past + length - 1], np.int32),
        "total": np.array([past + length], np.int32),
    }


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("length", "past"), [(1, 40), (20, 0)])
def test_the_same_with_and_without(packed: bool, length: int, past: int) -> None:
    proto = decoder(packed=packed, softcap=3.0)
    fused = mxort.convert(proto, accuracy_level=1).model
    plain = mxort.convert(proto, accuracy_level=1, fuse=False).model
    onnx.checker.check_model(fused)
    assert [(n.domain, n.op_type) for n in fused.graph.node if n.op_type == attention.NAME] == [
        ("mxort", attention.NAME)
    ]
    assert [n.domain for n in plain.graph.node if n.op_type == attention.NAME] == ["com.microsoft"]
    assert ("Concat" in {n.op_type for n in fused.graph.node}) != packed
    f = feeds(length, past)
    want = session(plain).run(None, f)
    for got in (session(fused).run(None, f), session(fused, library=False).run(None, f)):
        for x, y in zip(got, want, strict=True):
            # Two products in float, 1e-6 each, and a softmax between them that doubles the first.
            assert np.linalg.norm(x - y) <= 4e-6 * np.linalg.norm(y)


REFUSED = [
    ({"local_window_size": 16}, "attribute local_window_size"),
    ({"smooth_softmax": 1}, "attribute smooth_softmax"),
    ({"something_new": 1}, "attribute something_new"),
    ({"do_rotary": 0}, "it does not rotate"),
    ({"cache": TensorProto.FLOAT16}, "its cache is not float, or of unknown type"),
    ({"extra": ("positions",)}, "it has an input beyond sin_cache (positions, a bias, a sink, scales)"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_the_kernel_does_not_know_is_left_alone(changes: dict[str, Any], reason: str) -> None:
    model = ir.serde.deserialize_model(decoder(**changes))
    fused = attention.fuse(model)
    assert (fused.count, dict(fused.left)) == (0, {reason: 1})
    assert "mxort" not in model.opset_imports and not model.functions


def test_attributes_that_ask_for_nothing_are_no_hindrance() -> None:
    model = ir.serde.deserialize_model(decoder(local_window_size=-1, smooth_softmax=0, scale=0.25))
    assert attention.fuse(model).count == 1
    (node,) = [n for n in model.graph if n.op_type == attention.NAME]
    assert {a.name for a in node.attributes.values()} == {"num_heads", "kv_num_heads", "do_rotary", "scale"}


def test_inspection_lists_only_weights(tmp_path) -> None:
    onnx.save(decoder(), tmp_path / "m.onnx")
    mxort.convert(tmp_path / "m.onnx", tmp_path / "out.onnx")
    found = mxort.inspect(tmp_path / "out.onnx")
    assert [row.op_type for row in found.sites if row.status == "converted"] == ["MatMulMXFP4"] * 2
