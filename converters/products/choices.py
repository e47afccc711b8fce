"""The choice of experts that a graph makes by itself, as the logits that com.microsoft MoE chooses by.

Whatever computes them (sigmoids, corrections, groups: DeepSeek, GLM, Qwen), k experts of a row and their weights w are
the MoE whose logits are log w for those and -inf for the others, normalised, times the sum of the weights.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mxort.converters.constants import NotConstantError
from mxort.converters.products.base import Builder, Context
from mxort.converters.resolving import resolve

_NEVER = frozenset({"Exp", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Abs"})
"""Operators whose results are never negative."""

_AS = {
    name: slice(0, 1)
    for name in ("Cast", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Pow")
}
_AS |= {name: slice(0, 1) for name in ("Reshape", "Slice", "Squeeze", "TopK", "Transpose", "Unsqueeze")}
_AS |= {name: slice(0, 1) for name in ("ReduceMax", "ReduceMean", "ReduceSum")}
_AS |= {name: slice(None) for name in ("Add", "Div", "Max", "Min", "Mul")} | {"Where": slice(1, 3)}
"""Those whose first results are never negative where these inputs are not."""

SMALLEST = float(np.finfo(np.float32).tiny)
"""A weight below it counts as it: log 0 would be the mark of an expert that was not chosen."""


def never_negative(context: Context, value: ir.Value | None) -> bool:
    """Whether that follows from the operators that compute the value."""
    pending, seen = [value], set[ir.Value]()
    while pending:
        value = pending.pop()
        if value is None:
            return False
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        try:
            if not np.all(resolve(value, context.model.ir_version).numpy() >= 0):
                return False
        except NotConstantError:
            if node is None or node.domain != "":
                return False
            if node.op_type in _AS and value is node.outputs[0]:
                pending.extend(node.inputs[_AS[node.op_type]])
            elif node.op_type not in _NEVER:
                return False
    return True


def as_logits(
    build: Builder, choice: ir.Value, weights: ir.Value, k: int, experts: int
) -> tuple[ir.Value, ir.Value]:
    """(logits [rows, experts], the sums of the weights [rows, 1]) of what rows of ``k`` choose, float."""
    by_row = build.op("Reshape", [weights, build.integers([-1, k])])
    least = build.number(SMALLEST, ir.DataType.FLOAT)
    each = build.op("Unsqueeze", [build.op("Max", [by_row, least]), build.integers([2])])
    chosen = build.op("Reshape", [choice, build.integers([-1, k, 1])])
    numbers = build.constant(np.arange(experts, dtype=np.int64).reshape(1, 1, experts))
    none = build.number(0, ir.DataType.FLOAT)
    spread = build.op("Where", [build.op("Equal", [chosen, numbers]), each, none])
    of_expert = build.op("ReduceSum", [spread, build.integers([1])], keepdims=0)
    sums = build.op("ReduceSum", [by_row, build.integers([1])], keepdims=1)
    return build.op("Log", [of_expert]), sums
