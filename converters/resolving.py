"""Where a value's numbers come from: the constant behind it, and what of the file goes into it.

A constant is an initializer (of the graph or of an outer scope) or a ``Constant`` node, seen through the operators
of ``constant_steps``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from mxort.converters.constant_steps import STEPS
from mxort.converters.constants import SPARSE, Constant, NotConstantError, Stored

_CONSTANT_INPUTS_BEFORE_IR = 4
"""Before IR version 4 every initializer was listed as a graph input too, and constant all the same."""

_FOLD = "fold constants first: onnxruntime's ORT_ENABLE_BASIC saves such a model"


def resolve(value: ir.Value | None, ir_version: int) -> Constant:
    """The constant behind ``value``. Raises NotConstantError.

    ``ir_version`` is the model's: it decides whether an initializer that is a graph input can be overridden.
    """
    if value is None:
        raise NotConstantError("is absent")
    try:
        return _resolve(value, ir_version)
    except NotConstantError as error:
        node = value.producer()
        if node is not None and not error.computed and depends_on_input(value, ir_version):
            raise NotConstantError(f"is computed by {node.op_type}", computed=True) from None
        raise


def _resolve(value: ir.Value, ir_version: int) -> Constant:
    done: dict[ir.Value, Constant] = {}
    pending = [value]
    while pending:  # operands before the results, without a recursion that a long chain could exhaust
        current = pending[-1]
        node = current.producer()
        if current in done:
            pending.pop()
        elif node is None or not is_step(node):
            done[current] = _stored(current, ir_version)
        elif missing := [v for v in node.inputs if v is not None and v not in done]:
            pending += missing
        else:
            operands = [None if v is None else done[v] for v in node.inputs]
            done[current] = STEPS[node.op_type](node, operands, node.outputs.index(current))
    return done[value]


def is_step(node: ir.Node) -> bool:
    """Whether constants are seen through this node, if all its operands are some."""
    return node.domain == "" and node.op_type in STEPS


def leads_from_constants(node: ir.Node) -> bool:
    """Whether a node goes with the constants that only it reads: a step, or a ``Constant`` itself."""
    return is_step(node) or (node.domain == "" and node.op_type == "Constant")


def _stored(value: ir.Value, ir_version: int) -> Constant:
    node = value.producer()
    if node is None:
        stored = Stored(value, tensor := _initializer(value, ir_version), tensor)
    elif node.domain == "" and node.op_type == "Constant":
        stored = _constant_node(value, node)
    elif node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        raise NotConstantError(f"is quantised already ({node.op_type})")
    else:
        raise NotConstantError(f"is computed from constants by {node.op_type} ({_FOLD})")
    if SPARSE in stored.tensor.metadata_props:
        raise NotConstantError("is stored sparse, which takes fewer bytes")
    return Constant(stored, tuple(int(d) for d in stored.tensor.shape.numpy()), value.name or "")


def _initializer(value: ir.Value, ir_version: int) -> ir.TensorProtocol:
    if not value.is_initializer() or value.const_value is None:
        raise NotConstantError("is not constant", computed=True)
    if value.is_graph_input() and ir_version >= _CONSTANT_INPUTS_BEFORE_IR:
        raise NotConstantError("is the default of a graph input, which a caller may override")
    return value.const_value


def _constant_node(value: ir.Value, node: ir.Node) -> Stored:
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None:
        raise NotConstantError("is a Constant without a value")
    if attribute.is_ref():
        raise NotConstantError("is an attribute of a function")
    if attribute.type == ir.AttributeType.TENSOR:
        return Stored(value, attribute.value, attribute.value)
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return Stored(value, ir.tensor(np.asarray(attribute.value, np.float32)), attribute)
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
        return Stored(value, ir.tensor(np.asarray(attribute.value, np.int64)), attribute)
    raise NotConstantError(f"is a Constant of type {attribute.type.name.lower()}")


def depends_on_input(value: ir.Value, ir_version: int) -> bool:
    """Whether anything but constants goes into ``value``; nodes with subgraphs count as such."""
    for current in _sources(value):
        node = current.producer()
        if node is None:
            overridable = current.is_graph_input() and ir_version >= _CONSTANT_INPUTS_BEFORE_IR
            if not current.is_initializer() or overridable:
                return True
        elif any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        ):
            return True
    return False


def _sources(value: ir.Value) -> Iterator[ir.Value]:
    """The value and all that goes into it."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        yield current
        node = current.producer()
        for source in () if node is None else node.inputs:
            if source is not None and source not in seen:
                seen.add(source)
                pending.append(source)
