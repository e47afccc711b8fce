"""Convolutions of few positions as a product: 1x1, small kernels, and those moved by whole kernels (patch embeddings).

The channels become the last axis, where a product has its K; the positions that a kernel meets come to lie beside
each other there. Transposes that meet are taken away by ``channel_last``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as every

import numpy as np
import onnx_ir as ir

from mxort.converters.constants import FLOAT_TYPES, Constant
from mxort.converters.products.base import Builder, Context, Left, attribute_ints

_NARROW = 96
"""A convolution of K and N channels whose harmonic mean is less is faster as it is: the transposes around the product
then cost as much as it wins (measured on Zen 4, of 8 x 8 to 160 x 160 positions)."""

_NARROW_ALONG_AXES = 160
"""The same where the kernel lies along several axes: its operand is laid out nine times for 3 x 3."""

_MOST_TAPS = 16
"""Positions that are laid beside each other: an operand takes so many times its memory."""


@dataclass(frozen=True)
class _Axis:
    """How a kernel moves along an axis: ``block`` neighbours at a time, of which it meets ``taps``.

    Where the stride divides the kernel, blocks of a stride lie beside each other, else each position is a block.
    """

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def block(self) -> int:
        whole = self.stride > 1 and self.kernel % self.stride == 0 and self.dilation == 1
        return self.stride if whole else 1

    @property
    def taps(self) -> int:
        return self.kernel // self.block

    @property
    def step(self) -> int:
        return 1 if self.block > 1 else self.stride


def express(context: Context, node: ir.Node) -> None:
    """Transpose, MatMul, Add, Transpose in the place of a Conv, with what a kernel needs before. Raises Left."""
    weight = context.constant(node.inputs[1])
    axes = check(context, node, weight.shape, weight)
    rank, n = len(weight.shape), weight.shape[0]
    build = Builder(context, node)
    rows = _rows(build, node.inputs[0], axes)
    norm = _norm_of(context, node, n)
    matrix, bias = (
        _matrix(build, node.inputs[1], weight, axes),
        node.inputs[2] if len(node.inputs) > 2 else None,
    )
    result, last = node.outputs[0], node
    if norm is not None:
        result, last = norm.outputs[0], norm
        factor, shift = _folded(context, norm, bias, n)
        dtype = weight.dtype
        matrix = build.op("Mul", [matrix, build.constant(factor.astype(dtype.numpy()), dtype)])
        bias = build.constant(shift.astype(dtype.numpy()), dtype)
    y = build.product(rows, matrix)
    if bias is not None:
        y = build.op("Add", [y, bias])
    y = build.op("Transpose", [y], perm=[0, rank - 1, *range(1, rank - 1)])
    build.replace([y], [result], [node] if last is node else [node, last])


def check(
    context: Context, node: ir.Node, shape: tuple[int, ...], weight: Constant | None = None
) -> list[_Axis]:
    """How the kernel moves along each axis; ``weight`` [M, C, kernel...] of the shape, None: of floats, not there yet.

    Raises Left where the convolution stays.
    """
    axes = _axes(node, shape)
    _check_kernel(context, node, shape, axes)
    k, n = math.prod(shape[1:]), shape[0]
    context.check(node, weight, k, n, "" if weight is not None else "Conv")
    return axes


def _axes(node: ir.Node, shape: tuple[int, ...]) -> list[_Axis]:
    if len(shape) < 3:
        raise Left(f"weight of shape {list(shape)} is that of no convolution")
    kernel = shape[2:]
    ones = [1] * len(kernel)
    strides, dilations = attribute_ints(node, "strides", ones), attribute_ints(node, "dilations", ones)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    pads = attribute_ints(node, "pads", [0] * 2 * len(kernel))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if any(s != 1 for s in strides):
            raise Left(f"auto_pad {auto} with strides {strides} depends on the size of its input")
        total = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
    elif auto == "VALID":
        pads = [0] * 2 * len(kernel)
    if not len(strides) == len(dilations) == len(kernel) == len(pads) // 2 or min(*strides, *dilations) < 1:
        raise Left(
            f"strides {strides}, dilations {dilations}, pads {pads} do not fit a kernel {list(kernel)}"
        )
    sides = zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)
    return [_Axis(*a, *b) for a, b in zip(zip(kernel, strides, dilations, strict=True), sides, strict=True)]


def _check_kernel(context: Context, node: ir.Node, shape: tuple[int, ...], axes: Sequence[_Axis]) -> None:
    if (groups := node.attributes.get_int("group", 1)) != 1:
        raise Left(f"a convolution of {groups} groups has no MX operator")
    if any(axis.before < 0 or axis.after < 0 for axis in axes):
        raise Left("a convolution with negative pads is not converted")
    taps = math.prod(axis.taps for axis in axes)
    if taps > _MOST_TAPS:
        raise Left(f"a kernel that meets {taps} positions, at most {_MOST_TAPS} are laid beside each other")
    if context.selection.convert_conv:
        return
    n, k = shape[0], math.prod(shape[1:])
    several = sum(axis.taps > 1 for axis in axes) > 1
    if 2 * k * n < (_NARROW_ALONG_AXES if several else _NARROW) * (k + n):
        raise Left(f"a convolution of {k} by {n} is faster as it is (convert_conv)")


def _rows(build: Builder, x: ir.Value | None, axes: Sequence[_Axis]) -> ir.Value | None:
    """x [B, C, S...] -> [B, S'..., K]: of each position what the kernel meets there."""
    rank = len(axes) + 2
    if any(axis.before or axis.after for axis in axes):
        x = build.op(
            "Pad", [x, build.integers([0, 0, *(a.before for a in axes), 0, 0, *(a.after for a in axes)])]
        )
    picked = [i for i, axis in enumerate(axes) if axis.taps == axis.block == 1 and axis.step > 1]
    if picked:
        x = _slice(
            build,
            x,
            [i + 2 for i in picked],
            [0] * len(picked),
            [_END] * len(picked),
            [axes[i].step for i in picked],
        )
    if any(axis.block > 1 for axis in axes):
        x = _blocks(build, x, [axis.block for axis in axes])
    else:
        x = build.op("Transpose", [x], perm=[0, *range(2, rank), 1])
    if all(axis.taps == 1 for axis in axes):
        return x
    moving = [i for i, axis in enumerate(axes) if axis.taps > 1]
    parts = []
    for at in every(*(range(axes[i].taps) for i in moving)):
        starts = [tap * axes[i].dilation for i, tap in zip(moving, at, strict=True)]
        rest = [(axes[i].taps - 1 - tap) * axes[i].dilation for i, tap in zip(moving, at, strict=True)]
        ends = [-r if r else _END for r in rest]
        parts.append(_slice(build, x, [i + 1 for i in moving], starts, ends, [axes[i].step for i in moving]))
    return build.op("Concat", parts, axis=-1)


_END = 2**31 - 1


def _slice(
    build: Builder,
    x: ir.Value | None,
    axes: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    steps: Sequence[int],
) -> ir.Value:
    return build.op("Slice", [x, *map(build.integers, (starts, ends, axes, steps))])


def _blocks(build: Builder, x: ir.Value | None, blocks: Sequence[int]) -> ir.Value:
    """x [B, C, S...] -> [B, S / block..., C * block...]; what is left over at the end of an axis goes."""
    count = len(blocks)
    sizes = build.op("Slice", [build.op("Shape", [x]), build.integers([2]), build.integers([_END])])
    width = build.integers(blocks)
    number = build.op("Div", [sizes, width])
    whole = [
        build.integers([0] * count),
        build.op("Mul", [number, width]),
        build.integers(range(2, 2 + count)),
    ]
    x = build.op("Slice", [x, *whole])
    column = build.integers([count, 1])
    pairs = build.op("Concat", [build.op("Reshape", [v, column]) for v in (number, width)], axis=1)
    apart = build.op(
        "Concat", [build.integers([0, 0]), build.op("Reshape", [pairs, build.integers([-1])])], axis=0
    )
    x = build.op("Reshape", [x, apart])
    at, inside = range(2, 2 + 2 * count, 2), range(3, 3 + 2 * count, 2)
    x = build.op("Transpose", [x], perm=[0, *at, 1, *inside])
    return build.op("Reshape", [x, build.integers([0] * (1 + count) + [-1])])


def _matrix(build: Builder, value: ir.Value | None, weight: Constant, axes: Sequence[_Axis]) -> ir.Value:
    """W [M, C, kernel...] -> [K, M], K being positions, channels, and the places in a block."""
    n, channels, *_ = weight.shape
    k = math.prod(weight.shape[1:])
    if any(axis.taps > 1 for axis in axes):
        apart = [size for axis in axes for size in (axis.taps, axis.block)]
        value = build.op("Reshape", [value, build.integers([n, channels, *apart])])
        taps, inside = range(2, 2 + len(apart), 2), range(3, 3 + len(apart), 2)
        value = build.op("Transpose", [value], perm=[0, *taps, 1, *inside])
    flat = build.op("Reshape", [value, build.integers([n, k])])
    return build.op("Transpose", [flat], perm=[1, 0])


def _norm_of(context: Context, node: ir.Node, n: int) -> ir.Node | None:
    """The BatchNormalization that alone reads a convolution, with constants of ``n`` numbers."""
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    ((norm, index),) = uses
    if (norm.domain, norm.op_type, index) != ("", "BatchNormalization", 0) or norm.graph is not node.graph:
        return None
    if len(norm.inputs) != 5 or any(v.name and v.uses() for v in norm.outputs[1:]):
        return None
    if norm.attributes.get_int("training_mode", 0) or any(v.is_graph_output() for v in norm.outputs[1:]):
        return None
    bias = list(node.inputs[2:3])
    if not all(context.is_constant(value) for value in (*norm.inputs[1:], *bias)):
        return None
    shapes = [context.constant(value) for value in norm.inputs[1:]]
    return norm if all(c.shape == (n,) and c.dtype in FLOAT_TYPES for c in shapes) else None


def _folded(context: Context, norm: ir.Node, bias: ir.Value | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(what the columns of the product are multiplied by, what is added then), of the normalisation's constants."""
    scale, shift, mean, variance = (context.constant(v).numpy().astype(np.float64) for v in norm.inputs[1:])
    before = np.zeros(n) if bias is None else context.constant(bias).numpy().astype(np.float64)
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return factor, (before - mean) * factor + shift
