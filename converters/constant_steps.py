"""The operators that constants are seen through, one row each: what a node makes of constant operands.

Views (Transpose, Slice, Split, ...) copy nothing. The others (Concat, Mul, ...) compute as the runtime would,
in the type of their operands, when the result is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np
import onnx_ir as ir

from mxort.converters.constants import FLOAT_TYPES, Computed, Constant, NotConstantError

_MOST_INDICES = 4096
"""Numbers that a shape, a list of axes or of lengths may have: an absurd one is not read."""

_MOST_ELEMENTS = 2**33
"""Elements of a computed array: a Concat of a Concat of ... is large before anything is stored."""

Operands = Sequence[Constant | None]
"""Of a node's inputs; None for one that is absent."""


def _identity(node: ir.Node, operands: Operands, output: int) -> Constant:
    return _data(operands)


def _transpose(node: ir.Node, operands: Operands, output: int) -> Constant:
    constant = _data(operands)
    rank = len(constant.shape)
    attribute = node.attributes.get("perm")
    perm = tuple(attribute.as_ints()) if attribute is not None else tuple(reversed(range(rank)))
    if sorted(perm) != list(range(rank)):
        raise NotConstantError(f"is transposed by {list(perm)}, which is no permutation of {rank} axes")
    return constant.permuted(perm)


def _reshape(node: ir.Node, operands: Operands, output: int) -> Constant:
    constant = _data(operands)
    target = _integers(node, operands, 1, "shape")
    assert target is not None
    if not node.attributes.get_int("allowzero", 0):
        target = [
            constant.shape[i] if d == 0 and i < len(constant.shape) else d for i, d in enumerate(target)
        ]
    known = math.prod(d for d in target if d != -1)
    shape = tuple(constant.size // known if d == -1 and known else d for d in target)
    if min(shape, default=0) < 0 or math.prod(shape) != constant.size:
        raise NotConstantError(f"is reshaped from {list(constant.shape)} to {target}, which does not fit")
    return constant.reshaped(shape)


def _flatten(node: ir.Node, operands: Operands, output: int) -> Constant:
    constant = _data(operands)
    axis = node.attributes.get_int("axis", 1)
    axis += len(constant.shape) if axis < 0 else 0
    if not 0 <= axis <= len(constant.shape):
        raise NotConstantError(f"is flattened at axis {axis} of {len(constant.shape)}")
    return constant.reshaped((math.prod(constant.shape[:axis]), math.prod(constant.shape[axis:])))


def _squeeze(node: ir.Node, operands: Operands, output: int) -> Constant:
    constant = _data(operands)
    axes = _integers(node, operands, 1, "axes")
    if axes is None:
        axes = [i for i, d in enumerate(constant.shape) if d == 1]
    gone = {_axis(axis, len(constant.shape)) for axis in axes}
    if any(constant.shape[axis] != 1 for axis in gone):
        raise NotConstantError(f"is squeezed from {list(constant.shape)} at axes {axes}, which does not fit")
    return constant.reshaped(tuple(d for i, d in enumerate(constant.shape) if i not in gone))


def _unsqueeze(node: ir.Node, operands: Operands, output: int) -> Constant:
    constant = _data(operands)
    axes = _integers(node, operands, 1, "axes") or []
    rank = len(constant.shape) + len(axes)
    new = {_axis(axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise NotConstantError(f"is unsqueezed at axes {axes}, of which two are one")
    rest = iter(constant.shape)
    return constant.reshaped(tuple(1 if i in new else next(rest) for i in range(rank)))


def _expand(node: ir.Node, operands: Operands, output: int) -> Constant:
    """Only where it adds no elements: a larger array would have to be stored."""
    constant = _data(operands)
    target = tuple(_integers(node, operands, 1, "shape") or ())
    shape = _broadcast(constant.shape, target)
    if math.prod(shape) != constant.size:
        raise NotConstantError(f"is expanded from {list(constant.shape)} to {list(shape)}")
    return constant.reshaped(shape)


def _cast(node: ir.Node, operands: Operands, output: int) -> Constant:
    constant = _data(operands)
    target = ir.DataType(node.attributes["to"].as_int())
    if target == constant.dtype:
        return constant
    if constant.dtype not in FLOAT_TYPES or target not in FLOAT_TYPES:
        raise NotConstantError(f"is cast from {constant.dtype.name} to {target.name}")
    return Constant(constant.source, constant.shape, constant.name, constant.steps, (*constant.casts, target))


def _slice(node: ir.Node, operands: Operands, output: int) -> Constant:
    constant = _data(operands)
    starts, ends = _integers(node, operands, 1, "starts"), _integers(node, operands, 2, "ends")
    if starts is None or ends is None:
        raise NotConstantError("is sliced without starts or ends")
    axes = _integers(node, operands, 3, "axes") or list(range(len(starts)))
    steps = _integers(node, operands, 4, "steps") or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise NotConstantError(f"is sliced from {starts} to {ends} at {axes} by {steps}, which does not fit")
    ranges = [range(d) for d in constant.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = _axis(axis, len(ranges))
        ranges[at] = range(*slice(start, end, step).indices(constant.shape[at]))
    return constant.sliced(tuple(ranges), node.outputs[output].name or "")


def _split(node: ir.Node, operands: Operands, output: int) -> Constant:
    constant = _data(operands)
    axis = _axis(node.attributes.get_int("axis", 0), len(constant.shape))
    total, count = constant.shape[axis], len(node.outputs)
    lengths = _integers(node, operands, 1, "split")
    if lengths is None:  # equal parts; from opset 18 on the last one may be shorter
        part = -(-total // count)
        lengths = [min(part, max(0, total - i * part)) for i in range(count)]
    if sum(lengths) != total or len(lengths) != count or min(lengths) < 0:
        raise NotConstantError(f"is a part of {total} split into {lengths}, which does not fit")
    begin, end = list(pairwise(accumulate(lengths, initial=0)))[output]
    ranges = [range(d) for d in constant.shape]
    ranges[axis] = range(begin, end)
    return constant.sliced(tuple(ranges), node.outputs[output].name or "")


def _gather(node: ir.Node, operands: Operands, output: int) -> Constant:
    """One index, of a stack of weights, is a view; a list of them picks copies."""
    constant, indices = _data(operands), operands[1]
    axis = _axis(node.attributes.get_int("axis", 0), len(constant.shape))
    name, length = node.outputs[output].name or "", constant.shape[axis]
    assert indices is not None
    numbers = _integers(node, operands, 1, "indices")
    assert numbers is not None
    if any(not -length <= i < length for i in numbers):
        raise NotConstantError(f"is gathered at indices beyond {length}")
    before, after = constant.shape[:axis], constant.shape[axis + 1 :]
    if not indices.shape:
        ranges = [range(d) for d in constant.shape]
        ranges[axis] = range(numbers[0] % length, numbers[0] % length + 1)
        return constant.sliced(tuple(ranges), name).reshaped(before + after)
    shape = before + indices.shape + after
    picked = tuple(i % length for i in numbers)

    def take(array: np.ndarray) -> np.ndarray:
        return np.take(array, np.reshape(picked, indices.shape), axis)

    return _computed(node, (constant,), shape, name, (axis, *indices.shape, *picked), take)


def _concat(node: ir.Node, operands: Operands, output: int) -> Constant:
    parts = tuple(operand for operand in operands if operand is not None)
    first = _data(operands)
    axis = _axis(node.attributes.get_int("axis", 0), len(first.shape))
    rest = first.shape[:axis] + first.shape[axis + 1 :]
    if any(
        len(p.shape) != len(first.shape)
        or p.shape[:axis] + p.shape[axis + 1 :] != rest
        or p.dtype != first.dtype
        for p in parts
    ):
        raise NotConstantError("is joined of arrays that do not fit each other")
    length = sum(part.shape[axis] for part in parts)
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    name = node.outputs[output].name or ""
    return _computed(node, parts, shape, name, (axis,), lambda *arrays: np.concatenate(arrays, axis))


def _arithmetic(ufunc: np.ufunc) -> Callable[[ir.Node, Operands, int], Constant]:
    def step(node: ir.Node, operands: Operands, output: int) -> Constant:
        left, right = operands
        assert left is not None and right is not None
        if left.dtype != right.dtype or left.dtype not in FLOAT_TYPES:
            raise NotConstantError(
                f"is computed from {left.dtype.name} by {node.op_type} (fold constants first)"
            )
        shape = _broadcast(left.shape, right.shape)
        return _computed(node, (left, right), shape, node.outputs[output].name or "", (), ufunc)

    return step


STEPS: dict[str, Callable[[ir.Node, Operands, int], Constant]] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Cast": _cast,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(np.divide),
}
"""Operator of the standard domain -> (node, its operands, the output's number) -> the output. NotConstantError."""


def _data(operands: Operands) -> Constant:
    if not operands or operands[0] is None:
        raise NotConstantError("is absent")
    return operands[0]


def _integers(node: ir.Node, operands: Operands, index: int, attribute: str) -> list[int] | None:
    """A list of numbers that is an input in newer opsets and an attribute in older ones; None if it is neither."""
    if index < len(operands) and (given := operands[index]) is not None:
        if given.size > _MOST_INDICES or given.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            raise NotConstantError(
                f"goes through {node.op_type} with {attribute} of {given.size} {given.dtype.name}"
            )
        return [int(number) for number in given.numpy().reshape(-1)]
    if attribute in node.attributes:
        return list(node.attributes[attribute].as_ints())
    return None


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise NotConstantError(f"has {rank} axes, not one of number {axis}")
    return axis % rank


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise NotConstantError(f"is computed from shapes {list(a)} and {list(b)}, which do not fit") from None


def _computed(
    node: ir.Node,
    operands: tuple[Constant, ...],
    shape: tuple[int, ...],
    name: str,
    parameters: tuple[int, ...],
    run: Callable[..., np.ndarray],
) -> Constant:
    if math.prod(shape) > _MOST_ELEMENTS:
        raise NotConstantError(f"is computed by {node.op_type}, with {math.prod(shape)} elements")
    return Constant(Computed(node.op_type, operands, parameters, operands[0].dtype, run), shape, name)
