"""The function of MoEMXFP4: every expert computes every row, and what a row did not choose does not count.

It is the operator's oracle and runs anywhere; what it costs is that of all experts.
"""

# ruff: noqa: N803 (the names of the operator's inputs and attributes)
from __future__ import annotations

from collections.abc import Iterator
from typing import Any, no_type_check

import numpy as np
import onnx
import onnx.compose
import onnx.helper
import onnxscript
from onnxscript import opset15 as op
from onnxscript import opset23 as _newest

from mxort.converters.functions import (
    DOMAIN,
    EXPERTS,
    INTEGER_OPSETS,
    SYLVESTER,
    VERSION,
    activated,
)
from mxort.formats import BLOCK_SIZE, WEIGHT_FORMATS, scale_value, unpack_codes

_domain = onnxscript.values.Opset(DOMAIN, VERSION)
_FORMAT = WEIGHT_FORMATS["mxfp4"]
_UNITS = 2 ** (_FORMAT.bias - 1 + _FORMAT.mantissa_bits)
"""Elements are integers in units of 1 / _UNITS."""

_BYTES = np.arange(256, dtype=np.uint8)
_PAIRS = _FORMAT.values[unpack_codes(_BYTES[:, None], _FORMAT)]  # [256, 2], float
_FLOATS = onnx.helper.make_tensor("values", onnx.TensorProto.FLOAT, _PAIRS.shape, _PAIRS)
_INTEGERS = onnx.helper.make_tensor(
    "integers", onnx.TensorProto.INT8, _PAIRS.shape, (_PAIRS * _UNITS).astype(np.int8).tobytes(), raw=True
)
_SCALES = onnx.helper.make_tensor("scales", onnx.TensorProto.FLOAT, [256], scale_value(_BYTES))
_SCALES_OF_UNITS = onnx.helper.make_tensor(
    "scales", onnx.TensorProto.FLOAT, [256], scale_value(_BYTES) / np.float32(_UNITS)
)
_BLOCK = [-1, BLOCK_SIZE]


@no_type_check  # a graph in Python's clothes: nothing in it has a Python type
@onnxscript.script(_domain, default_opset=op)
def decoded(B, B_scale):
    """float [E, K, N] of codes [E, N, K/2], which onnxruntime folds when it loads a model."""
    pairs = op.Gather(op.Constant(value=_FLOATS), op.Cast(B, to=onnx.TensorProto.INT32))
    blocks = op.Reshape(pairs, op.Constant(value_ints=_BLOCK))
    flat = op.Reshape(op.Cast(B_scale, to=onnx.TensorProto.INT32), op.Constant(value_ints=[-1, 1]))
    shape = op.Concat(op.Shape(B, end=2), op.Constant(value_ints=[-1]), axis=0)
    return op.Transpose(
        op.Reshape(blocks * op.Gather(op.Constant(value=_SCALES), flat), shape), perm=[0, 2, 1]
    )


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def dequantized(B, B_scale):
    """The same by DequantizeLinear, which onnxruntime does when it runs: a weight takes a byte, not four."""
    pairs = op.Gather(op.Constant(value=_INTEGERS), op.Cast(B, to=onnx.TensorProto.INT32))
    blocks = op.Reshape(pairs, op.Constant(value_ints=_BLOCK))
    flat = op.Reshape(op.Cast(B_scale, to=onnx.TensorProto.INT32), op.Constant(value_ints=[-1]))
    scales = op.Gather(op.Constant(value=_SCALES_OF_UNITS), flat)
    shape = op.Concat(op.Shape(B, end=2), op.Constant(value_ints=[-1]), axis=0)
    return op.Transpose(op.Reshape(op.DequantizeLinear(blocks, scales, axis=0), shape), perm=[0, 2, 1])


@no_type_check
@onnxscript.script(_domain, default_opset=_newest)
def standard(B, B_scale):
    """The same of codes that are FLOAT4E2M1 [E, N, K] and scales that are FLOAT8E8M0 [E, N, K/32] (opset 24)."""
    values = _newest.DequantizeLinear(
        B, B_scale, axis=2, block_size=BLOCK_SIZE, output_dtype=onnx.TensorProto.FLOAT
    )
    return _newest.Transpose(values, perm=[0, 2, 1])


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def unrotated(x, hadamard):
    return op.Identity(x)


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def rotated(x, hadamard):
    """x . H along its last axis; H float [rotation, rotation]."""
    size = op.Shape(hadamard, end=1)
    groups = op.Shape(x, start=-1) / size
    by_rotation = op.Reshape(x, op.Concat(op.Shape(x, end=-1), groups, size, axis=0), allowzero=1)
    return op.Reshape(op.MatMul(by_rotation, hadamard), op.Shape(x), allowzero=1)


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def moe(
    X,
    router,
    gate_up_B,
    gate_up_B_scale,
    gate_up_column_scale,
    gate_up_bias,
    down_B,
    down_B_scale,
    down_column_scale,
    down_bias,
    k: int,
    activation: int,
    normalize_routing_weights: int = 0,
    swiglu_fusion: int = 0,
    activation_alpha: float = 1.0,
    activation_beta: float = 0.0,
    swiglu_limit: float = 0.0,
    rotation: int = 1,
    activation_format: str = "none",
    accuracy_level: int = 0,
):
    """Y[..., D]: the weighted sum of the k experts that each row's logits choose; H is applied to the rows."""
    zero, one, two = (
        op.Constant(value_ints=[0]),
        op.Constant(value_ints=[1]),
        op.Constant(value_ints=[2]),
    )
    last = op.Constant(value_ints=[-1])
    nought = op.Constant(value_float=0.0)

    # Chosen by the logits, which order the experts as the exact softmax does; ties go to the lower index.
    logits = op.Flatten(op.Cast(router, to=onnx.TensorProto.FLOAT), axis=-1)  # [rows, E]
    _, experts = op.TopK(logits, op.Reshape(op.Constant(value_int=k), last))
    p = op.GatherElements(op.Softmax(logits, axis=-1), experts, axis=1)  # [rows, k]
    total = op.Where(
        op.Constant(value_int=normalize_routing_weights) != op.Constant(value_int=0),
        op.ReduceSum(p, last, keepdims=1),
        op.Constant(value_float=1.0),
    )
    none = op.Expand(nought, op.Shape(logits))
    weights = op.ScatterElements(none, experts, p / total, axis=1)
    by_row = op.ScatterElements(none, experts, op.Expand(op.Constant(value_float=1.0), op.Shape(p)), axis=1)
    chosen = op.Unsqueeze(op.Transpose(by_row, perm=[1, 0]), last) > nought  # [E, rows, 1]

    size = op.Reshape(op.Constant(value_int=rotation), last)
    sizes = op.Concat(size, size, axis=0)
    signs = op.Slice(
        op.Constant(value=SYLVESTER),
        op.Constant(value_ints=[0, 0]),
        sizes,
        op.Constant(value_ints=[0, 1]),
    )
    hadamard = op.Cast(signs, to=onnx.TensorProto.FLOAT) / op.Sqrt(op.Cast(size, to=onnx.TensorProto.FLOAT))
    rows = op.Flatten(op.Cast(X, to=onnx.TensorProto.FLOAT), axis=-1)
    first = op.Unsqueeze(rotated(rows, hadamard), zero)  # [1, rows, D]
    up_scale = op.Unsqueeze(op.Cast(gate_up_column_scale, to=onnx.TensorProto.FLOAT), one)
    up_bias = op.Unsqueeze(op.Cast(gate_up_bias, to=onnx.TensorProto.FLOAT), one)
    product = op.MatMul(first, decoded(gate_up_B, gate_up_B_scale)) * up_scale + up_bias  # [E, rows, N]

    # Interleaved, the gate is every second column from 0, the factor from 1; in halves, one after the other.
    fusion = op.Reshape(op.Constant(value_int=swiglu_fusion), last)
    columns = op.Shape(product, start=2)
    half = op.Where(fusion == two, columns / two, columns)
    step = op.Where(fusion == one, two, one)
    gate = op.Slice(product, zero, half, two, step)
    start = op.Where(fusion == two, half, op.Where(fusion == one, one, zero))
    up = op.Slice(product, start, columns, two, step)
    asked = op.Constant(value_float=swiglu_limit)
    limit = op.Where(op.And(asked > nought, fusion > zero), asked, op.Constant(value_float=float("inf")))
    alpha = op.Constant(value_float=activation_alpha)
    hidden = activated(op.Min(gate, limit), alpha, activation=activation)
    factor = op.Where(
        fusion == zero,
        op.Constant(value_float=1.0),
        op.Max(op.Min(up, limit), op.Neg(limit)) + op.Constant(value_float=activation_beta),
    )

    down_scale = op.Unsqueeze(op.Cast(down_column_scale, to=onnx.TensorProto.FLOAT), one)
    bias = op.Unsqueeze(op.Cast(down_bias, to=onnx.TensorProto.FLOAT), one)
    second = rotated(hidden * factor, hadamard)
    y = op.MatMul(second, decoded(down_B, down_B_scale)) * down_scale + bias  # [E, rows, D]
    of_experts = op.Unsqueeze(op.Transpose(weights, perm=[1, 0]), last)
    # Not a product with 0 alone: what an expert gives that a row did not choose may be NaN or infinite.
    total_y = op.ReduceSum(op.Where(chosen, y * of_experts, nought), zero, keepdims=0)
    return op.CastLike(op.Reshape(total_y, op.Shape(X), allowzero=1), X)


def _parts(opset: int) -> dict[str, Any]:
    """The functions that stand in the operator's, by the name that calls them."""
    parts = {"rotated": rotated, "activated": activated}
    return parts | {"decoded": dequantized if opset in INTEGER_OPSETS else decoded}


def _inlined(call: onnx.NodeProto, body: onnx.FunctionProto, prefix: str) -> Iterator[onnx.NodeProto]:
    """The nodes of a function in the place of a call; their attributes keep referring to the caller's of that name."""
    named = {value: onnx.ValueInfoProto(name=value) for value in (*body.input, *body.output)}
    graph = onnx.helper.make_graph(
        body.node, prefix, [named[i] for i in body.input], [named[o] for o in body.output]
    )
    nodes = onnx.compose.add_prefix_graph(graph, prefix)
    for value, given in zip(body.input, call.input, strict=True):
        yield onnx.helper.make_node("Identity", [given], [prefix + value])
    yield from nodes.node
    for value, result in zip(body.output, call.output, strict=True):
        yield onnx.helper.make_node("Identity", [prefix + value], [result])


def function(opset: int) -> onnx.FunctionProto:
    """The function for a model of default-domain ``opset``."""
    return _made(opset, _parts(opset))


def standard_function(opset: int) -> onnx.FunctionProto:
    """The same without a rotation, of weights in ONNX's own types; ``opset`` 24 or later."""
    return _made(opset, {"rotated": unrotated, "activated": activated, "decoded": standard})


def _made(opset: int, parts: dict[str, Any]) -> onnx.FunctionProto:
    proto: onnx.FunctionProto = moe.to_function_proto()
    nodes: list[onnx.NodeProto] = []
    for at, node in enumerate(proto.node):
        called = parts.get(node.op_type) if node.domain == DOMAIN else None
        body = called.to_function_proto() if called else None
        nodes += _inlined(node, body, f"{node.op_type}_{at}_") if body else [node]
    del proto.node[:], proto.opset_import[:]
    proto.node.extend(nodes)
    proto.name = EXPERTS
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    return proto
