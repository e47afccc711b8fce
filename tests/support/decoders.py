"""Decoders whose text can be foretold: what they compute is a few lines of numpy."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, HIDDEN, POSITIONS = 24, 64, 96

_RNG = np.random.default_rng(5)
WEIGHTS = {
    "table": _RNG.standard_normal((VOCABULARY, HIDDEN), dtype=np.float32),
    "places": _RNG.standard_normal((POSITIONS, HIDDEN), dtype=np.float32),
    "mix": _RNG.standard_normal((HIDDEN, HIDDEN), dtype=np.float32) / 8,
    "head": _RNG.standard_normal((HIDDEN, VOCABULARY), dtype=np.float32) / 8,
}


def logits_of(tokens, positions=False):
    """int [n] -> float32 [n, VOCABULARY]: what :func:`prefix_sums` computes."""
    h = WEIGHTS["table"][tokens].cumsum(axis=0)
    if positions:
        h = h + WEIGHTS["places"][: len(tokens)]
    return np.tanh(np.tanh(h) @ WEIGHTS["mix"]) @ WEIGHTS["head"]


def prefix_sums(path, *, cached=False, positions=False, encoder=False, fixed_batch=None, tokens="int64"):
    """input_ids (position_ids, attention_mask, a cache of embeddings) -> logits of the sums of all embeddings so far.

    ``encoder``: of all embeddings, also those that come later.
    """
    batch = fixed_batch or "batch_size"
    value, float_ = helper.make_tensor_value_info, TensorProto.FLOAT
    kind = {"int64": TensorProto.INT64, "int32": TensorProto.INT32}[tokens]
    constants = WEIGHTS | {"axis": np.int64(1), "axes": np.int64([1]), "far": np.int64([1 << 40])}
    inputs = [value("input_ids", kind, [batch, "sequence_length"])]
    outputs = [value("logits", float_, [batch, "sequence_length", VOCABULARY])]
    node = helper.make_node
    nodes = [node("Gather", ["table", "input_ids"], ["embedded"])]
    everything = "embedded"
    if cached:
        past = "past_key_values.0.key"
        inputs += [
            value("attention_mask", TensorProto.INT64, [batch, "past_sequence_length + sequence_length"]),
            value(past, float_, [batch, 1, "past_sequence_length", HIDDEN]),
        ]
        outputs.append(value("present.0.key", float_, [batch, 1, "total_sequence_length", HIDDEN]))
        nodes += [
            node("Unsqueeze", ["embedded", "axes"], ["key"]),
            node("Concat", [past, "key"], ["present.0.key"], axis=2),
            node("Squeeze", ["present.0.key", "axes"], ["everything"]),
        ]
        everything = "everything"
    if encoder:
        nodes.append(node("ReduceSum", [everything, "axes"], ["sums"], keepdims=1))
        nodes.append(node("Add", ["sums", "embedded"], ["own"]))
    else:
        nodes += [
            node("CumSum", [everything, "axis"], ["sums"]),
            node("Shape", ["input_ids"], ["count"], start=1, end=2),
            node("Neg", ["count"], ["first"]),
            node("Slice", ["sums", "first", "far", "axes"], ["own"]),
        ]
    hidden = "own"
    if positions:
        inputs.append(value("position_ids", TensorProto.INT64, [batch, "sequence_length"]))
        nodes += [
            node("Gather", ["places", "position_ids"], ["place"]),
            node("Add", ["own", "place"], ["placed"]),
        ]
        hidden = "placed"
    if cached:  # a token that the mask leaves out would make everything wrong
        nodes += [
            node("ReduceMin", ["attention_mask"], ["least"], keepdims=0),
            node("Cast", ["least"], ["factor"], to=float_),
            node("Mul", [hidden, "factor"], ["masked"]),
        ]
        hidden = "masked"
    nodes += [
        node("Tanh", [hidden], ["h0"]),
        node("MatMul", ["h0", "mix"], ["h1"], name="mix"),
        node("Tanh", ["h1"], ["h2"]),
        node("MatMul", ["h2", "head"], ["logits"], name="head"),
    ]
    used = {name for n in nodes for name in n.input}
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
