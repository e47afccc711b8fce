"""The operators with weights as ONNX itself says them: DequantizeLinear in blocks of 32 with E8M0 scales (opset 24).

Codes and scales stay what they are, byte for byte: FLOAT4E2M1 has the even element in the low nibble, FLOAT6 four
elements in three bytes from the lowest bit on (opset 28), as the operators do. What else the operators do (attention,
a cache, experts) is put in as its own function says it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray
from onnxscript.version_converter import ConvertVersionPass

from mxort.converters import functions
from mxort.converters.constants import NotConstantError
from mxort.converters.opset import opset_of
from mxort.converters.resolving import resolve
from mxort.converters.rewrite import drop_dead
from mxort.formats import BLOCK_SIZE, WEIGHT_FORMATS

OPSET, OPSET_OF_FLOAT6 = 24, 28
IR_VERSIONS = {OPSET: 13, OPSET_OF_FLOAT6: 14}
"""The first that goes with an opset."""

_CONVERTED = 25
"""The last opset that onnxscript (0.7) converts to. From there to 28 operators got types and attributes, and what they
compute without those is the same."""

_FLOAT6, _BYTE = 6, 8
"""Bits of an element."""

_INT8_UNIT = 6
"""MXINT8 is in units of 2^-6, DequantizeLinear's int8 in units of 1: the scale is smaller by so many powers of two."""

TYPES = {
    "mxfp4": "FLOAT4E2M1",
    "mxfp6_e2m3": "FLOAT6E2M3",
    "mxfp6_e3m2": "FLOAT6E3M2",
    "mxfp8_e4m3": "FLOAT8E4M3FN",
    "mxint8": "INT8",
}
"""ONNX's name of a format's elements."""


class StandardError(Exception):
    """Says what of a model ONNX has no words for."""


def rewrite(model: ir.Model) -> int:
    """Rewrites the model in place and returns the number of weights. Raises StandardError; the model is then spoilt."""
    opset = max((_check(node) for node in _weighted(model)), default=OPSET)
    for identifier in [
        i for i in model.functions if i[0] == functions.DOMAIN and i[1] in functions.WITH_WEIGHTS
    ]:
        del model.functions[identifier]  # so that their nodes stay
    _raise_opset(model, opset)
    count = 0
    for node in _weighted(model):
        count += functions.operands_of(node.op_type)
        if node.op_type == functions.EXPERTS:
            _read_stacks(node)
            continue
        parts = _gather if node.op_type.startswith(functions.GATHER) else _product
        _put(node, parts(node, _Names(node)))
    _inline_experts(model)
    if left := {node.op_type for node in model.graph.all_nodes() if node.domain == functions.DOMAIN}:
        raise StandardError(f"operators {', '.join(sorted(left))} have no standard form")
    model.opset_imports.pop(functions.DOMAIN, None)
    model.ir_version = max(model.ir_version, IR_VERSIONS[opset])
    for key in [key for key in model.metadata_props if key.startswith("mxort.")]:
        del model.metadata_props[key]
    return count


def _name_every_output(model: ir.Model) -> None:
    """onnx_ir puts a function in a node's place only if the node has all of its outputs."""
    for node in model.graph.all_nodes():
        function = model.functions.get(node.op_identifier())
        if function is not None and len(node.outputs) < len(function.outputs):
            node.resize_outputs(len(function.outputs))


def _weighted(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph.all_nodes()
        if node.domain == functions.DOMAIN and node.op_type in functions.WITH_WEIGHTS
    ]


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _format(node: ir.Node) -> str:
    bits = _attribute(node, functions.EXPONENT_BITS, 0)
    return functions.weight_format_of(node.op_type, bits)


def _check(node: ir.Node) -> int:
    """The opset that the node's weights need. Raises StandardError for what no standard operator says."""
    weight_format = _format(node)
    opset = OPSET_OF_FLOAT6 if WEIGHT_FORMATS[weight_format].bits == _FLOAT6 else OPSET
    newest = onnx.defs.onnx_opset_version()
    if newest < opset or TYPES[weight_format] not in ir.DataType.__members__:
        raise StandardError(
            f"node {node.name!r} has weights in {weight_format}, which opset {opset} has: onnx {onnx.__version__} "
            f"knows {newest} (onnx-ir {ir.__version__})"
        )
    if (rotation := _attribute(node, "rotation", 1)) != 1:
        raise StandardError(f"node {node.name!r} has rotation {rotation}, expected 1")
    if (rounded := _attribute(node, "activation_format", "none")) != "none":
        raise StandardError(f"node {node.name!r} has activation_format {rounded}, expected none")
    return opset


def _type(node: ir.Node) -> ir.DataType:
    return ir.DataType[TYPES[_format(node)]]


def _raise_opset(model: ir.Model, wanted: int) -> None:
    _name_every_output(model)
    if opset_of(model.graph) >= min(wanted, _CONVERTED):
        passes.InlinePass()(model)
    else:
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            ConvertVersionPass(min(wanted, _CONVERTED), fallback=True)(model)
        finally:
            logging.disable(level)
    if opset_of(model.graph) < min(wanted, _CONVERTED):
        raise StandardError(f"opset {opset_of(model.graph)} cannot be raised to {wanted}")
    model.opset_imports[""] = max(model.opset_imports[""], wanted)


def _read_stacks(node: ir.Node) -> None:
    """Has a node of experts read codes [E, N, K] and scales [E, N, K/32] in ONNX's own types."""
    names = _Names(node)
    for operand in range(functions.operands_of(node.op_type)):
        at = functions.first_weight(node.op_type) + 4 * operand
        scales = _array(node, at + 1)
        shape = (*scales.shape[:-1], scales.shape[-1] * BLOCK_SIZE)
        for index, tensor, what in (
            (at, _retyped(node, at, ir.DataType.FLOAT4E2M1, shape), "B"),
            (at + 1, _e8m0(scales), "B_scale"),
        ):
            old = node.inputs[index]
            node.replace_input_with(
                index, _initializer(node, index, tensor, f"{names.base}/{operand}/{what}")
            )
            drop_dead([old] if old is not None else [])


def _inline_experts(model: ir.Model) -> None:
    """Puts the function of experts, with ONNX's own dequantisation, in the place of their nodes."""
    if not any(node.op_type == functions.EXPERTS for node in _weighted(model)):
        return
    from mxort.converters import experts_function

    body = ir.serde.deserialize_function(experts_function.standard_function(opset_of(model.graph)))
    model.functions[body.identifier()] = body
    passes.InlinePass()(model)
    passes.RemoveUnusedNodesPass()(model)


class _Names:
    """Names of the values and nodes that stand for a node, made from its own."""

    def __init__(self, node: ir.Node) -> None:
        self.base = node.name or node.outputs[0].name or ""
        self.new: list[ir.Node] = []

    def add(
        self, operator: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], what: str
    ) -> ir.Value:
        made = ir.node(operator, inputs, attributes, name=f"{self.base}/{what}")
        made.outputs[0].name = f"{self.base}/{what}_output"
        self.new.append(made)
        return made.outputs[0]


def _product(node: ir.Node, names: _Names) -> list[ir.Node]:
    a = node.inputs[0]
    assert a is not None
    is_float = a.dtype == ir.DataType.FLOAT
    wide = a if is_float else names.add("Cast", [a], {"to": ir.DataType.FLOAT}, "A")
    factors = []
    for operand in range(functions.operands_of(node.op_type)):
        part = ("", "up_")[operand]
        weight = _weight(node, 1 + 4 * operand, names, part, int(node.attributes["K"].value))
        y = names.add(
            "MatMul",
            [wide, names.add("Transpose", [weight], {"perm": [1, 0]}, f"{part}B_T")],
            {},
            f"{part}product",
        )
        y = _vector(node, 3 + 4 * operand, "Mul", y, names, f"{part}column_scale")
        y = _vector(node, 4 + 4 * operand, "Add", y, names, f"{part}bias")
        factors.append(y)
    y = _activated(factors[0], int(_attribute(node, functions.ACTIVATION, 0)), names)
    if len(factors) > 1:
        y = names.add("Mul", [y, factors[1]], {}, "gated")
    if not is_float:
        names.add("CastLike", [y, a], {}, "Y")
    return names.new


def _gather(node: ir.Node, names: _Names) -> list[ir.Node]:
    table = _weight(node, 1, names, "", int(node.attributes["K"].value))
    multiplier = node.inputs[3]
    assert multiplier is not None
    indices = node.inputs[0]
    y = names.add("Gather", [table, indices], {"axis": 0}, "rows")
    if (_array(node, 3) != 1).any():
        picked = names.add("Gather", [multiplier, indices], {"axis": 0}, "multipliers")
        axis = _constant(names, np.array([-1], np.int64), "last")
        column = names.add("Unsqueeze", [picked, axis], {}, "column")
        wide = names.add("Cast", [column], {"to": ir.DataType.FLOAT}, "multiplier")
        y = names.add("Mul", [y, wide], {}, "scaled")
    names.add("Cast", [y], {"to": multiplier.dtype or ir.DataType.FLOAT}, "Y")
    return names.new


def _weight(node: ir.Node, at: int, names: _Names, part: str, k: int) -> ir.Value:
    """float32 [N, K] of codes and scales at two inputs of the node."""
    weight_format = _format(node)
    scales = _array(node, at + 1)
    rows, width = scales.shape[0], scales.shape[1] * BLOCK_SIZE
    if weight_format == "mxint8":
        if scales.min() < _INT8_UNIT:
            raise StandardError(
                f"node {node.name!r} has the scale {scales.min()}, expected {_INT8_UNIT} or more"
            )
        scales = scales - np.uint8(_INT8_UNIT)
    values = [
        _initializer(node, at, _retyped(node, at, _type(node), (rows, width)), f"{names.base}/{part}B"),
        _initializer(
            node,
            at + 1,
            _e8m0(scales),
            f"{names.base}/{part}B_scale",
        ),
    ]
    attributes = {"axis": 1, "block_size": BLOCK_SIZE, "output_dtype": ir.DataType.FLOAT}
    y = names.add("DequantizeLinear", values, attributes, f"{part}dequantised")
    if width == k:
        return y
    bounds = [
        _constant(names, np.array([n], np.int64), f"{part}{what}")
        for n, what in ((0, "start"), (k, "end"), (1, "axis"))
    ]
    return names.add("Slice", [y, *bounds], {}, f"{part}cut")


def _e8m0(scales: NDArray[np.uint8]) -> ir.TensorProtocol:
    return ir.Tensor(scales.view(ml_dtypes.float8_e8m0fnu), dtype=ir.DataType.FLOAT8E8M0)


def _retyped(node: ir.Node, at: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.TensorProtocol:
    """The codes at an input of the node, the same bytes as another type."""
    value = node.inputs[at]
    assert value is not None
    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            dtype,
            shape=ir.Shape(shape),
            name="",
            base_dir=tensor.base_dir,
        )
    codes = _array(node, at)
    if WEIGHT_FORMATS[_format(node)].bits < _BYTE:
        return ir.PackedTensor(codes.reshape(-1), dtype, shape=ir.Shape(shape))
    return ir.Tensor(codes.view(dtype.numpy()), dtype=dtype)


def _initializer(node: ir.Node, at: int, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """A new initializer of the graph that holds the old one; the same for all nodes that read that."""
    old = node.inputs[at]
    assert old is not None
    if (made := old.meta.get("mxort.standard")) is not None:
        known: ir.Value = made
        return known
    graph = old.graph if isinstance(old.graph, ir.Graph) else node.graph
    assert isinstance(graph, ir.Graph)
    tensor.name = name
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    old.meta["mxort.standard"] = value
    return value


def _constant(names: _Names, array: NDArray[Any], what: str) -> ir.Value:
    return names.add("Constant", [], {"value": ir.tensor(array)}, what)


def _vector(node: ir.Node, at: int, operator: str, y: ir.Value, names: _Names, what: str) -> ir.Value:
    """``y`` and the vector at an input of the node; ``y`` itself where that changes nothing."""
    vector = node.inputs[at]
    if (_array(node, at) == (1 if operator == "Mul" else 0)).all():
        return y
    if vector is not None and vector.dtype != ir.DataType.FLOAT:
        vector = names.add("Cast", [vector], {"to": ir.DataType.FLOAT}, f"{what}_wide")
    return names.add(operator, [y, vector], {}, what)


def _array(node: ir.Node, at: int) -> NDArray[Any]:
    value = node.inputs[at]
    try:
        if value is None:
            raise NotConstantError("is absent")
        return resolve(value, IR_VERSIONS[OPSET]).array()
    except NotConstantError as error:
        raise StandardError(f"node {node.name!r}: input {at} {error}") from None


def _activated(y: ir.Value, activation: int, names: _Names) -> ir.Value:
    if activation == functions.RELU:
        return names.add("Relu", [y], {}, "activated")
    if activation in (functions.GELU, functions.GELU_TANH):
        approximate = "tanh" if activation == functions.GELU_TANH else "none"
        return names.add("Gelu", [y], {"approximate": approximate}, "activated")
    if activation == functions.SILU:
        return names.add("Mul", [y, names.add("Sigmoid", [y], {}, "sigmoid")], {}, "activated")
    return y


def _put(node: ir.Node, new: list[ir.Node]) -> None:
    """Puts ``new``, whose last gives the result, in the place of the node."""
    old, output, graph = node.outputs[0], new[-1].outputs[0], node.graph
    assert graph is not None
    dead = [value for value in node.inputs if value is not None]
    output.type, output.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], [output])
    output.name = old.name
    drop_dead(dead)
