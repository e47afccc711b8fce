"""x / sqrt(mean(x^2) + epsilon) * weight in single steps becomes RMSNormalization (ONNX, opset 23).

Around the steps may be a cast to float and one back (exporters write one even where nothing is to be cast). Between the
two the operator computes in float too; it rounds once, after the weight, where the steps round before it as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mxort.converters.attention import Fused
from mxort.converters.fusion.steps import (
    Builder,
    Other,
    inner,
    kind,
    maker,
    next_node,
    numbers,
    other_operand,
    scalar,
    take_over,
)
from mxort.converters.rewrite import drop_steps
from mxort.converters.shapes import Inferred

NAME = "RMSNormalization"


@dataclass(frozen=True)
class _Norm:
    """``last`` gives the norm of ``source``, times ``weight``."""

    last: ir.Node
    source: ir.Value
    weight: ir.Value
    epsilon: float


def find(model: ir.Model, known: Inferred) -> tuple[list[_Norm], Fused]:
    """What can be replaced, and why the rest cannot."""
    found, result = [], Fused()
    for mean in model.graph:
        square = inner(mean.inputs[0], "Pow", "Mul") if kind(mean) == "ReduceMean" else None
        if square is None or not _is_square(square, model.ir_version):
            continue
        try:
            found.append(_read(mean, square, model.ir_version, known))
        except Other as reason:
            result.left[str(reason)] += 1
    return found, result


def replace(model: ir.Model, found: list[_Norm]) -> None:
    """In place."""
    for norm in found:
        attributes = {"axis": -1, "epsilon": norm.epsilon, "stash_type": 1}
        made = Builder(model, norm.last).add(NAME, [norm.source, norm.weight], attributes)
        old = norm.last.outputs[0]
        take_over(old, made.outputs[0])
        drop_steps([old])


def _is_square(node: ir.Node, ir_version: int) -> bool:
    if kind(node) == "Mul":
        return node.inputs[0] is node.inputs[1]
    return scalar(node.inputs[1], ir_version) == 2


def _read(mean: ir.Node, square: ir.Node, ir_version: int, known: Inferred) -> _Norm:
    if not _over_the_last(mean, ir_version, known):
        raise Other("its mean is not over the last dimension")
    x = square.inputs[0]
    epsilon, scaled = _scaled(mean, x, ir_version)
    last, cast = scaled, next_node(scaled.outputs[0], "Cast")
    if cast is not None:
        last = cast
    source = _uncast(x, last, known)
    weighted = next_node(last.outputs[0], "Mul")
    weight = None if weighted is None else other_operand(weighted, last.outputs[0])
    if weighted is None or not _is_row(weight):
        raise Other("its result is not multiplied by a weight of one dimension")
    assert source is not None and weight is not None
    if None in (types := (known.dtype(source), known.dtype(weight))) or types[0] != types[1]:
        raise Other("its weight is of another type, or of one that is not known")
    return _Norm(weighted, source, weight, epsilon)


def _over_the_last(mean: ir.Node, ir_version: int, known: Inferred) -> bool:
    if not mean.attributes.get_int("keepdims", 1):
        return False
    attribute = mean.attributes.get("axes")
    axes = list(attribute.as_ints()) if attribute is not None else None
    if axes is None and len(mean.inputs) > 1:
        found = numbers(mean.inputs[1], ir_version)
        axes = None if found is None else [int(axis) for axis in found]
    shape = None if axes == [-1] else known.shape(mean.inputs[0])
    return axes == [-1] or (shape is not None and axes == [len(shape) - 1])


def _scaled(mean: ir.Node, x: ir.Value | None, ir_version: int) -> tuple[float, ir.Node]:
    """(epsilon, the node that gives x / sqrt(mean + epsilon))."""
    shifted = next_node(mean.outputs[0], "Add")
    epsilon = None if shifted is None else scalar(other_operand(shifted, mean.outputs[0]), ir_version)
    root = None if shifted is None else next_node(shifted.outputs[0], "Sqrt")
    if shifted is None or epsilon is None or root is None:
        raise Other("it takes no root of a mean and a constant")
    after = next_node(root.outputs[0], "Reciprocal", "Div")
    if after is None:
        raise Other("its root is not divided by")
    if kind(after) == "Div" and after.inputs[0] is x and after.inputs[1] is root.outputs[0]:
        return epsilon, after
    if kind(after) == "Div" and scalar(after.inputs[0], ir_version) != 1:
        raise Other("its root is not divided by")
    product = next_node(after.outputs[0], "Mul")
    if product is None or other_operand(product, after.outputs[0]) is not x:
        raise Other("something else is divided by its root")
    return epsilon, product


def _uncast(x: ir.Value | None, last: ir.Node, known: Inferred) -> ir.Value | None:
    """What was cast before the steps, where the result is of its type again, or the cast changes nothing."""
    before = maker(x)
    if before is None or kind(before) != "Cast":
        return x
    source = before.inputs[0]
    of_result = known.dtype(last.outputs[0])
    return source if of_result is not None and known.dtype(source) == of_result else x


def _is_row(value: ir.Value | None) -> bool:
    node = maker(value)
    if value is None or (node is not None and kind(node) == "Identity"):
        return node is not None and _is_row(node.inputs[0])
    shape = value.const_value.shape if value.const_value is not None else value.shape
    return shape is not None and len(tuple(shape)) == 1
