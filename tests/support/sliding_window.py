"""A decoder whose second attention has a KV cache of a window's size, as onnxruntime-genai 0.18 builds them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, HIDDEN, HEADS, HEAD, WINDOW = 40, 64, 2, 32, 16


def sliding_window(path, layers=2, rotary=False):
    """input_ids, attention_mask and a cache for each layer -> logits; odd layers slide over ``WINDOW`` positions."""
    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    weights: dict[str, np.ndarray] = {
        "table": rng.standard_normal((VOCABULARY, HIDDEN), dtype=np.float32),
        "head": rng.standard_normal((HIDDEN, VOCABULARY), dtype=np.float32),
        "one": np.int64([1]),
        "axis": np.int64([1]),
        "last": np.int64(1),
    }
    if rotary:
        angles = np.arange(64)[:, None] * 10.0 ** -np.arange(HEAD // 2)
        weights |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["h0"]),
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["lengths"], keepdims=0),
        helper.make_node("Sub", ["lengths", "one"], ["lengths_less_one"]),
        helper.make_node("Cast", ["lengths_less_one"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "last"], ["total64"]),
        helper.make_node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
    ]
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    outputs = [value("logits", TensorProto.FLOAT, None)]
    for i in range(layers):
        for part in "qkvo":
            weights[f"{part}{i}"] = rng.standard_normal((HIDDEN, HIDDEN), dtype=np.float32) / 8
        for part in "qkv":
            nodes.append(
                helper.make_node("MatMul", [f"h{i}", f"{part}{i}"], [f"{part}_{i}"], name=f"{part}{i}")
            )
        cache = [f"past_key_values.{i}.{what}" for what in ("key", "value")]
        present = [f"present.{i}.{what}" for what in ("key", "value")]
        tables = ["cos", "sin"] if rotary else []
        slides = {"local_window_size": WINDOW, "sliding_window_cache": 1} if i % 2 else {}
        nodes += [
            helper.make_node(
                "GroupQueryAttention",
                [f"q_{i}", f"k_{i}", f"v_{i}", *cache, "seqlens_k", "total", *tables],
                [f"a{i}", *present],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=HEADS,
                do_rotary=int(rotary),
                **slides,
            ),
            helper.make_node("MatMul", [f"a{i}", f"o{i}"], [f"m{i}"], name=f"o{i}"),
            helper.make_node("Add", [f"h{i}", f"m{i}"], [f"h{i + 1}"]),
        ]
        positions = "past_sequence_length" if not i % 2 else "window"
        inputs += [value(name, TensorProto.FLOAT, ["batch_size", HEADS, positions, HEAD]) for name in cache]
        outputs += [value(name, TensorProto.FLOAT, None) for name in present]
    nodes.append(helper.make_node("MatMul", [f"h{layers}", "head"], ["logits"], name="head"))
    graph = helper.make_graph(
        nodes,
        "decoder",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
