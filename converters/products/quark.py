"""AMD Quark's rounding operators around float weights, and MIGraphX's name for them: packed as what they round to.

The operator takes the scale of the OCP specification ("floor"), and a product of it is exactly one of ours with these
codes. An operand that is rounded the same way, along K, is rounded by the operator from then on.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import FLOAT_TYPES, Constant
from mxort.converters.lazy_weights import Bytes
from mxort.converters.products.base import Context, Left
from mxort.converters.products.dequantize import readers_of
from mxort.converters.products.quantised import Quantised, decoded, put
from mxort.converters.rewrite import drop_dead
from mxort.formats import BLOCK_SIZE, E2M1, pack_codes, scale_value, to_blocks
from mxort.scales import quantize_blocks

_ELEMENT, _TIES_TO_EVEN = "fp4_e2m1", 2
_OPERAND = "mxfp4"


def express(context: Context, node: ir.Node) -> None:
    """Raises Left, at the products that read a weight which stays."""
    if not context.is_constant(node.inputs[0]):
        return  # an operand: its product takes it up
    weight = context.constant(node.inputs[0])
    if not _is_mxfp4(node) or weight.dtype not in FLOAT_TYPES:
        kind = node.attributes.get_string("element_dtype", "") or "something else"
        raise Left(
            f"is rounded to {kind} at each run ({node.op_type})", [user for user, _ in node.outputs[0].uses()]
        )
    try:
        readers = readers_of(context, node, weight)
    except Left:
        _fold(context, node, weight)
        raise
    if node.attributes.get_int("axis", 1) % 2 != readers.k_axis:
        raise Left(f"is rounded along its columns at each run ({node.op_type})", readers.nodes)
    operands = {reader: _rounded_operand(context, reader) for reader in readers.nodes}
    rounded = all(operands.values())
    rows = _rows(weight, readers.k_axis, node.name or node.op_type, _OPERAND if rounded else None)
    readers.read(context, put(context, rows, weight.dtype, (weight,)))
    if rounded:
        for reader, operand in operands.items():
            _take_up(reader, operand)


def _fold(context: Context, node: ir.Node, weight: Constant) -> None:
    """A constant that no product of ours reads (a bias): rounded now, in float, so that it needs no operator."""
    rank = len(weight.shape)
    axis = node.attributes.get_int("axis", 1)
    if not -rank <= axis < rank or node.graph is None:
        return
    last = np.moveaxis(weight.numpy().astype(np.float32), axis, -1)
    codes, scales = quantize_blocks(to_blocks(last), E2M1, "floor")
    numbers = E2M1.values[codes] * scale_value(scales)[..., None]
    whole = np.moveaxis(numbers.reshape(*last.shape[:-1], -1)[..., : last.shape[-1]], -1, axis)
    array = np.ascontiguousarray(whole).astype(weight.dtype.numpy())
    name = context.unique(f"{weight.name}/rounded")
    value = ir.Value(
        name=name,
        type=ir.TensorType(weight.dtype),
        shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array, dtype=weight.dtype, name=name),
    )
    context.model.graph.register_initializer(value)
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=False)
    if node.outputs[0].is_graph_output():
        return
    sources = [v for v in node.inputs if v is not None]
    node.graph.remove(node, safe=True)
    drop_dead(sources)


def _is_mxfp4(node: ir.Node) -> bool:
    attributes = node.attributes
    return (
        attributes.get_string("element_dtype", "") == _ELEMENT
        and attributes.get_int("block_size", BLOCK_SIZE) == BLOCK_SIZE
        and attributes.get_int("rounding_mode", _TIES_TO_EVEN) == _TIES_TO_EVEN
    )


def _rows(weight: Constant, axis: int, name: str, activation_format: str | None) -> Quantised:
    turned = weight.transposed() if axis == 0 else weight
    n, k = turned.shape

    def rounded() -> tuple[Bytes, Bytes]:
        return quantize_blocks(to_blocks(turned.numpy().astype(np.float32)), E2M1, "floor")

    def codes() -> tuple[Bytes, Bytes]:
        elements, scales = rounded()
        return pack_codes(elements.reshape(n, -1), E2M1), scales

    def values() -> NDArray[np.float32]:
        return decoded(*rounded(), k)

    return Quantised(name, (n, k), values, codes, activation_format)


def _rounded_operand(context: Context, reader: ir.Node) -> ir.Node | None:
    """The node that rounds a product's operand along its last axis, as ours would."""
    operand = reader.inputs[0]
    node = None if operand is None else operand.producer()
    if node is None or node.op_type not in NAMES or not _is_mxfp4(node):
        return None
    rank = context.ranks.of(node.inputs[0])
    axis = node.attributes.get_int("axis", 1)
    transposed = bool(reader.attributes.get_int("transA", 0))
    return node if axis == -1 or (rank is not None and axis == rank - 1 and not transposed) else None


def _take_up(reader: ir.Node, rounding: ir.Node | None) -> None:
    if rounding is None:
        return
    reader.replace_input_with(0, rounding.inputs[0])
    output = rounding.outputs[0]
    if not output.uses() and not output.is_graph_output() and rounding.graph is not None:
        rounding.graph.remove(rounding, safe=True)


NAMES = ("MXQuantizeDequantize", "MXFixNeuron")
"""Quark's name and the one that it had before, by which MIGraphX knows it."""

DOMAINS = ("com.amd.quark", "com.vai.quantize", "")
"""Where they are found."""
