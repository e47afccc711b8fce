"""Models small enough to convert and run in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (64, 128, 96)
"""Input, hidden and output width of :func:`mlp`."""


def mlp(path: Path, *, seed: int = 0, scale: float = 1.0, external: bool = False, output: str = "y") -> Path:
    """x float [batch, 64] -> fc1, Add, Relu, fc2 (MatMul both) -> y float [batch, 96] times ``scale``."""
    rng = np.random.default_rng(seed)
    constants = {
        "w1": rng.standard_normal(WIDTHS[:2], dtype=np.float32),
        "b1": rng.standard_normal(WIDTHS[1], dtype=np.float32),
        "w2": rng.standard_normal(WIDTHS[1:], dtype=np.float32) * np.float32(scale),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"], name="fc1"),
        helper.make_node("Add", ["h0", "b1"], ["h1"], name="bias"),
        helper.make_node("Relu", ["h1"], ["h2"], name="relu"),
        helper.make_node("MatMul", ["h2", "w2"], [output], name="fc2"),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTHS[0]])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", WIDTHS[2]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=path.name + ".data", size_threshold=0)
    return path


HEADS = (2,)
"""Heads of :func:`decoder`'s cache."""


def decoder(path: Path) -> Path:
    """The inputs and outputs of a decoder with a KV cache: logits are an embedding, keys are the tokens themselves.

    input_ids int64 [batch, sequence], attention_mask int64 [batch, total], past_key_values.0.key float
    [batch, 2, past, 4] -> logits float [batch, sequence, 16], present.0.key.
    """
    constants = {
        "table": np.random.default_rng(0).standard_normal((16, 16), dtype=np.float32),
        "axes": np.array([1, 3], np.int64),
        "repeats": np.array([1, *HEADS, 1, 4], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMax", ["attention_mask"], ["mask"], keepdims=0),
        helper.make_node("Cast", ["mask"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["embedded", "factor"], ["logits"]),
        helper.make_node("Cast", ["input_ids"], ["tokens"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["tokens", "axes"], ["columns"]),
        helper.make_node("Tile", ["columns", "repeats"], ["keys"]),
        helper.make_node("Concat", ["past_key_values.0.key", "keys"], ["present.0.key"], axis=2),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
            value(
                "past_key_values.0.key", TensorProto.FLOAT, ["batch_size", *HEADS, "past_sequence_length", 4]
            ),
        ],
        [
            value("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", 16]),
            value("present.0.key", TensorProto.FLOAT, ["batch_size", *HEADS, "total_sequence_length", 4]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
