"""Layers of int8 integers beside MatMul: QGemm, QAttention, ConvInteger, QLinearConv, as those of floats.

A Gemm is a product at once; attention and convolutions become those of floats, whose own rules then follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import FLOAT_TYPES, Constant
from mxort.converters.products import convolution, fused
from mxort.converters.products.base import Builder, Context, Left
from mxort.converters.products.integer import BYTES, WAS_INTEGERS, Chain, drop_unread, may
from mxort.converters.products.quantised import Quantised, product, put

_Parameters = tuple[ir.Value | None, ir.Value | None, ir.Value | None]
"""Integers, their scale, their zero point."""


def _parameters(given: Sequence[ir.Value | None], first: int) -> _Parameters:
    return given[first], given[first + 1], given[first + 2]


def _table(context: Context, node: ir.Node, given: _Parameters, axis: int) -> tuple[ir.Value, Constant]:
    """(float [N, K] of integers with N along ``axis``, their scale of 1 or N numbers). Raises Left."""
    weight, scale, zero = _constants(context, given)
    shape = weight.shape
    n, k = shape[axis], weight.size // shape[axis]

    def values() -> NDArray[np.float32]:
        rows = np.moveaxis(weight.numpy(), axis, 0).reshape(n, k).astype(np.float32)
        if zero is not None:
            rows = rows - zero.numpy().astype(np.float32).reshape(-1, 1)
        return np.asarray(rows * scale.numpy().astype(np.float32).reshape(-1, 1))

    sources = (weight, scale, *(() if zero is None else (zero,)))
    return put(context, Quantised(node.name or "weight", (n, k), values), scale.dtype, sources), scale


def _constants(context: Context, given: _Parameters) -> tuple[Constant, Constant, Constant | None]:
    weight, scale, zero = given
    return (
        context.constant(weight),
        context.constant(scale, "scale"),
        None if zero is None else context.constant(zero, "zero point"),
    )


def _shape(context: Context, given: _Parameters, axis: int, rank: int = 0) -> tuple[int, ...]:
    """The weight's. Raises Left for what is not read."""
    weight, scale, zero = _constants(context, given)
    if (
        (rank and len(weight.shape) != rank)
        or weight.dtype not in BYTES
        or scale.dtype not in FLOAT_TYPES
        or not weight.size
    ):
        raise Left(f"is quantised already, of shape {list(weight.shape)}, in a way that is not read")
    for constant in (scale, zero):
        if constant is not None and constant.size not in (1, weight.shape[axis]):
            raise Left("is quantised already, with scales that do not fit its columns")
    return weight.shape


def _bias(
    context: Context, build: Builder, bias: ir.Value | None, operand: ir.Value | None, scale: Constant
) -> ir.Value | None:
    """The numbers of an int32 bias, which is in units of both scales; columns are its last axis."""
    if bias is None:
        return None
    factor = context.constant(operand, "scale").numpy().astype(np.float64).reshape(-1)
    units = context.constant(bias, "bias").numpy().astype(np.float64)
    dtype = scale.dtype
    numbers = units * factor * scale.numpy().astype(np.float64).reshape(-1)
    return build.constant(numbers.astype(dtype.numpy()), dtype)


def _operand(build: Builder, given: _Parameters) -> ir.Value | None:
    """The numbers of the operand: before DynamicQuantizeLinear rounded them, else as a static scale has them."""
    x, scale, zero = given
    rounding = None if x is None else x.producer()
    if rounding is not None and rounding.op_type == "DynamicQuantizeLinear" and scale is rounding.outputs[1]:
        return rounding.inputs[0]
    return build.op("DequantizeLinear", [x, scale, *([] if zero is None else [zero])])


def _rounding(given: _Parameters) -> Sequence[ir.Node]:
    node = None if given[0] is None else given[0].producer()
    return [node] if node is not None and node.op_type == "DynamicQuantizeLinear" else []


def gemm(context: Context, node: ir.Node) -> None:
    """QGemm: alpha A . B in float, or quantised where it has a scale for that. Raises Left."""
    may(context)
    *given, bias, y_scale, y_zero = (*node.inputs, *[None] * 9)[:9]
    a, b = _parameters(given, 0), _parameters(given, 3)
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    shape = _shape(context, b, axis, 2)
    context.check(node, None, shape[1 - axis], shape[axis], "MatMul")
    _check_bias(context, bias, a[1], shape[axis])
    table, scale = _table(context, node, b, axis)
    build = Builder(context, node)
    x = _operand(build, a)
    if node.attributes.get_int("transA", 0):
        x = build.op("Transpose", [x], perm=[1, 0])
    y = product(build, x, table)
    if (added := _bias(context, build, bias, a[1], scale)) is not None:
        y = build.op("Add", [y, added])
    if (alpha := node.attributes.get_float("alpha", 1.0)) != 1:
        y = build.op("Mul", [y, build.number(alpha, scale.dtype)])
    build.note(WAS_INTEGERS)
    build.replace([_rounded(build, y, y_scale, y_zero)])
    drop_unread(_rounding(a))


def _check_bias(context: Context, bias: ir.Value | None, operand: ir.Value | None, n: int) -> None:
    """Raises Left where the bias is not of constants, or of no n columns."""
    if bias is None:
        return
    if context.constant(operand, "scale").size != 1:
        raise Left("is quantised already, with scales that do not fit its rows")
    if context.constant(bias, "bias").shape[-1:] not in ((n,), (1,), ()):
        raise Left("is quantised already, with a bias that does not fit its columns")


def _rounded(build: Builder, y: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
    if scale is None:
        return y
    return build.op("QuantizeLinear", [y, scale, *([] if zero is None else [zero])])


def attention(context: Context, node: ir.Node) -> None:
    """QAttention: as Attention of floats, which is then that rule's matter. Raises Left."""
    may(context)
    x, w, bias, x_scale, w_scale, mask, x_zero, w_zero, past = (*node.inputs, *[None] * 9)[:9]
    weight: _Parameters = (w, w_scale, w_zero)
    k, n = _shape(context, weight, 1, 2)
    fused.check_attention(context, node, past, mask)
    context.check(node, None, k, n, "Attention")
    table, _ = _table(context, node, weight, 1)
    build = Builder(context, node)
    operand = _operand(build, (x, x_scale, x_zero))
    matrix = build.op("Transpose", [table], perm=[1, 0])
    settings = {name: a.value for name, a in node.attributes.items() if name != "past_present_share_buffer"}
    y = build.product_of(
        "Attention", [operand, matrix, bias, mask], settings, origin="Attention", domain="com.microsoft"
    )
    build.note(WAS_INTEGERS)
    build.replace([y])
    drop_unread(_rounding((x, x_scale, x_zero)))


def dynamic_conv(context: Context, node: ir.Node) -> None:
    """ConvInteger of what DynamicQuantizeLinear makes, then Cast and Mul with the scales. Raises Left."""
    may(context)
    chain = Chain.of(node)
    weight: _Parameters = (node.inputs[1], chain.scale, (*node.inputs, None, None)[3])
    convolution.check(context, node, _shape(context, weight, 0))
    build = Builder(context, node)
    chain.replace(build, _conv(context, build, node, chain.rounding.inputs[0], weight))


def static_conv(context: Context, node: ir.Node) -> None:
    """QLinearConv: its operand dequantised, its result quantised as before. Raises Left."""
    may(context)
    *given, y_scale, y_zero, bias = (*node.inputs, None)[:9]
    x, weight = _parameters(given, 0), _parameters(given, 3)
    shape = _shape(context, weight, 0)
    convolution.check(context, node, shape)
    _check_bias(context, bias, x[1], shape[0])
    build = Builder(context, node)
    added = _bias(context, build, bias, x[1], context.constant(weight[1], "scale"))
    y = _conv(context, build, node, _operand(build, x), weight, added)
    build.replace([_rounded(build, y, y_scale, y_zero)])


def _conv(
    context: Context,
    build: Builder,
    node: ir.Node,
    x: ir.Value | None,
    weight: _Parameters,
    bias: ir.Value | None = None,
) -> ir.Value:
    """The result of the same convolution of floats."""
    table, _ = _table(context, node, weight, 0)
    shape = context.constant(weight[0]).shape
    kernel = build.op("Reshape", [table, build.integers(shape)])
    settings = {name: a.value for name, a in node.attributes.items()}
    y = build.product_of("Conv", [x, kernel, bias], settings, origin="Conv")
    build.note(WAS_INTEGERS)
    return y
