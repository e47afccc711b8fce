"""MatMul by constants that are no right-hand matrix: W . X as (X^T . W^T)^T, [B, K, N] as a product for each slice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from mxort.converters.constants import Constant
from mxort.converters.products.base import Builder, Context, Left

_MOST_SLICES = 16
"""A batch of more matrices would be so many nodes."""


def express(context: Context, node: ir.Node) -> None:
    """Raises Left for a batch that stays; other products are left to ``sites``."""
    left, right = node.inputs
    if context.is_constant(right):
        weight = context.constant(right)
        if math.prod(weight.shape[:-2]) > 1:
            _batched(context, node, weight)
    elif context.is_constant(left) and len(context.constant(left).shape) == 2:
        _left(context, node, context.constant(left))


def swap_last(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def _left(context: Context, node: ir.Node, weight: Constant) -> None:
    n, k = weight.shape
    rank = context.ranks.of(node.inputs[1])
    if rank is None:
        raise Left("the constant is the left operand, and the rank of the other is unknown")
    context.check(node, weight, k, n)
    build = Builder(context, node)
    x = node.inputs[1]
    if rank > 1:
        x = build.op("Transpose", [x], perm=swap_last(rank))
    y = build.product(x, build.op("Transpose", [node.inputs[0]], perm=[1, 0]))
    if rank > 1:
        y = build.op("Transpose", [y], perm=swap_last(rank))
    build.replace([y])


def _batched(context: Context, node: ir.Node, weight: Constant) -> None:
    *outer, batch, k, n = weight.shape
    if any(size != 1 for size in outer):
        raise Left(f"weight of shape {list(weight.shape)} is a batch along several axes")
    if batch > _MOST_SLICES:
        raise Left(f"weight of shape {list(weight.shape)} is a batch of more than {_MOST_SLICES}")
    context.check(node, weight, k, n)
    x = node.inputs[0]
    rank = context.ranks.of(x)
    shape = None if x is None else x.shape
    size = None if shape is None or len(shape) < 3 else shape[-3]
    if rank is None or rank < len(weight.shape) > 3:
        raise Left(f"weight of shape {list(weight.shape)} adds dimensions to A of rank {rank}")
    if rank > 2 and not isinstance(size, int):
        raise Left(f"weight of shape {list(weight.shape)} is a batch, and that of A is unknown")
    build = Builder(context, node)
    parts: Sequence[ir.Value | None] = [x] * batch
    if rank > 2 and size == batch:
        parts = build.split(x, [1] * batch, rank - 3)
    elif rank < 3:
        shape_of_one = build.op("Concat", [build.integers([1]), build.op("Shape", [x])], axis=0)
        parts = [build.op("Reshape", [x, shape_of_one])] * batch
    matrices = build.op("Reshape", [node.inputs[1], build.integers([batch, k, n])])
    results = [build.product(part, build.nth(matrices, i, [k, n]), f"/{i}") for i, part in enumerate(parts)]
    build.replace([build.op("Concat", results, axis=-3)])
