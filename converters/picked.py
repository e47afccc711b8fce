"""Recognising matrices that a model picks from a constant stack as it runs, as those of experts."""

from __future__ import annotations

import onnx_ir as ir

from mxort.converters.constants import Constant, NotConstantError
from mxort.converters.resolving import resolve

PICKERS = ("Gather", "GatherND")

_BETWEEN = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""What stands between the stack and the product."""

_STACK = 3
"""Axes of a stack of matrices, at least."""


def stack_of(node: ir.Node, ir_version: int) -> Constant | None:
    """The constant stack of matrices that a node picks from; None for any other node."""
    if node.domain != "" or node.op_type not in PICKERS:
        return None
    try:
        stack = resolve(node.inputs[0], ir_version)
    except NotConstantError:
        return None
    return stack if len(stack.shape) >= _STACK else None


def by(value: ir.Value | None, ir_version: int) -> str:
    """A phrase, of which matrices ``value`` is picked; "" where it is not."""
    node = None if value is None else value.producer()
    while node is not None and node.domain == "" and node.op_type in _BETWEEN and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    stack = None if node is None else stack_of(node, ir_version)
    if node is None or stack is None:
        return ""
    return f"its weight is picked from {list(stack.shape)} by {node.op_type} {node.name or node.outputs[0].name!r}"


def reason(node: ir.Node, ir_version: int) -> str:
    """Why a node that picks stays, for its row, which has the bytes; "" where it picks no matrices for a product."""
    stack = stack_of(node, ir_version)
    pending, seen = ([node], {node}) if stack is not None else ([], set[ir.Node]())
    while pending:
        for value in pending.pop().outputs:
            for user, index in value.uses():
                if user.domain == "" and user.op_type in ("MatMul", "Gemm", "Einsum"):
                    assert stack is not None
                    return f"picks from {list(stack.shape)} what {user.name or user.op_type!r} multiplies by"
                if user.domain == "" and user.op_type in _BETWEEN and index == 0 and user not in seen:
                    seen.add(user)
                    pending.append(user)
    return ""
