"""A decoder of one layer with a cache, as onnxruntime-genai's builder writes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mxort.converters import attention

HEADS, KV_HEADS, SIZE, WIDTH = 4, 2, 32, 64
INFO = helper.make_tensor_value_info


def decoder(
    *,
    packed: bool = True,
    cache: int = TensorProto.FLOAT,
    extra: tuple[str, ...] = (),
    sink: bool = False,
    **attributes: Any,
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
    if sink:
        inputs += [*[""] * (11 - len(inputs)), "sink"]
        weights["sink"] = rng.standard_normal(HEADS)
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
