"""The scale of attention where an exporter writes how it follows from the size of the heads, not the number.

TorchScript takes scaled_dot_product_attention apart so: the last dimension of an operand (Shape, Slice, Cast),
1 / Sqrt of that, and of this the Sqrt for each operand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from mxort.converters.constants import NotConstantError
from mxort.converters.resolving import resolve

_LONGEST = 12
"""Steps from the size to the scale; what is longer is something else."""

LastDimension = Callable[[ir.Value], int]
"""Of a value that is split into heads; raises ValueError where it is not known."""


def computed(value: ir.Value, last_dimension: LastDimension, ir_version: int) -> tuple[float, bool] | None:
    """(the number, whether it is a float32) that ``value`` always is; None where it is something else."""
    try:
        return _number(value, last_dimension, ir_version, _LONGEST)
    except (NotConstantError, ValueError, ZeroDivisionError):
        return None


def _number(
    value: ir.Value | None, last_dimension: LastDimension, ir_version: int, left: int
) -> tuple[float, bool]:
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type in ("Constant", "ConstantOfShape"):
        constant = resolve(value, ir_version)
        return float(constant.numpy().reshape(())), constant.dtype == ir.DataType.FLOAT
    if not left:
        raise ValueError("too many steps")
    if node.op_type in ("Slice", "Gather"):
        return _last_of_shape(node, last_dimension, ir_version), False
    if node.op_type in ("Unsqueeze", "Squeeze", "Identity"):
        return _number(node.inputs[0], last_dimension, ir_version, left - 1)
    numbers = [_number(v, last_dimension, ir_version, left - 1) for v in node.inputs]
    (first, is_float), *others = numbers
    if node.op_type == "Cast":
        return first, node.attributes.get_int("to") == ir.DataType.FLOAT
    if node.op_type == "Sqrt":
        return math.sqrt(first), is_float
    if node.op_type in ("Mul", "Div"):
        second = others[0][0]
        return first * second if node.op_type == "Mul" else first / second, is_float
    raise ValueError(node.op_type)


def _last_of_shape(node: ir.Node, last_dimension: LastDimension, ir_version: int) -> float:
    """Of a Slice or a Gather that takes the last dimension of a value of rank 4, that dimension."""
    source, at = node.inputs[:2]
    shape = None if source is None else source.producer()
    if shape is None or shape.op_type != "Shape" or shape.attributes or shape.inputs[0] is None:
        raise ValueError("no shape")
    if int(resolve(at, ir_version).numpy().reshape(())) not in (-1, 3):
        raise ValueError("another dimension")
    if node.op_type == "Slice" and int(resolve(node.inputs[2], ir_version).numpy().reshape(())) < 4:
        raise ValueError("nothing")
    return float(last_dimension(shape.inputs[0]))
