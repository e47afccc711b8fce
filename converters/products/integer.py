"""Products of int8 integers, dynamic and static: as products of floats by the numbers that the integers stand for.

What was rounded of the operand is then no longer, but for the kernels' own; of a static one what is rounded of the
operand and the result stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import FLOAT_TYPES, Constant
from mxort.converters.products import recurrent
from mxort.converters.products.base import Builder, Context, Left
from mxort.converters.products.quantised import AGAIN, Quantised, product, put

BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
WAS_INTEGERS = "was int8"


@dataclass(frozen=True)
class _Integers:
    """W [K, N] in int8 with scale and zero point, one of each or one for each column."""

    weight: Constant
    scale: Constant
    zero: Constant | None

    @staticmethod
    def of(
        context: Context, weight: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None
    ) -> _Integers:
        """Raises Left."""
        found = _Integers(
            context.constant(weight),
            context.constant(scale, "scale"),
            None if zero is None else context.constant(zero, "zero point"),
        )
        if (
            len(found.weight.shape) != 2
            or found.weight.dtype not in BYTES
            or found.scale.dtype not in FLOAT_TYPES
        ):
            raise Left(
                f"is quantised already, of shape {list(found.weight.shape)}, in a way that is not read"
            )
        for constant in (found.scale, found.zero):
            if constant is not None and constant.size not in (1, found.weight.shape[1]):
                raise Left("is quantised already, with scales that do not fit its columns")
        return found

    def table(self, context: Context, name: str) -> ir.Value:
        k, n = self.weight.shape

        def values() -> NDArray[np.float32]:
            return _numbers(self.weight.numpy(), self.scale, self.zero).T

        sources = (self.weight, self.scale, *(() if self.zero is None else (self.zero,)))
        return put(context, Quantised(name, (n, k), values), self.scale.dtype, sources)


def _numbers(weight: NDArray[np.generic], scale: Constant, zero: Constant | None) -> NDArray[np.float32]:
    """[..., n] of integers, scales and zero points [..., n or 1]."""
    numbers = weight.astype(np.float32)
    if zero is not None:
        numbers = numbers - zero.numpy().astype(np.float32).reshape(-1)
    return np.asarray(numbers * scale.numpy().astype(np.float32).reshape(-1))


def _wanted(context: Context, node: ir.Node, integers: _Integers) -> str:
    """The table's name. Raises Left where the product would not be converted."""
    k, n = integers.weight.shape
    context.check(node, None, k, n, "MatMul")
    return node.name or "weight"


def may(context: Context) -> None:
    if not context.selection.requantize:
        raise Left(AGAIN)


def source(value: ir.Value | None, op_type: str) -> ir.Node:
    node = None if value is None else value.producer()
    if node is None or (node.domain, node.op_type) != ("", op_type):
        raise Left(f"is quantised already, and its operand is not made by {op_type}")
    return node


def dynamic(context: Context, node: ir.Node) -> None:
    """MatMulInteger of what DynamicQuantizeLinear makes, then Cast and Mul with the scales. Raises Left."""
    may(context)
    chain = Chain.of(node)
    integers = _Integers.of(context, node.inputs[1], chain.scale, (*node.inputs, None, None)[3])
    table = integers.table(context, _wanted(context, node, integers))
    build = Builder(context, node)
    y = product(build, chain.rounding.inputs[0], table)
    build.note(WAS_INTEGERS)
    chain.replace(build, y)


@dataclass(frozen=True)
class Chain:
    """What quantize_dynamic makes of a product: (rounding) -> product -> (cast) -> (mul) with its scales."""

    rounding: ir.Node
    product: ir.Node
    cast: ir.Node
    mul: ir.Node
    scales: ir.Node

    @staticmethod
    def of(node: ir.Node) -> Chain:
        """Raises Left."""
        rounding = source(node.inputs[0], "DynamicQuantizeLinear")
        cast = _only_reader(node.outputs[0], "Cast")
        mul = _only_reader(cast.outputs[0], "Mul")
        factor = next(v for v in mul.inputs if v is not cast.outputs[0])
        chain = Chain(rounding, node, cast, mul, source(factor, "Mul"))
        others = [v for v in chain.scales.inputs if v is not rounding.outputs[1]]
        if len(others) != 1 or cast.graph is not node.graph or mul.graph is not node.graph:
            raise Left("is quantised already, and its result is not multiplied by its scales alone")
        return chain

    @property
    def scale(self) -> ir.Value | None:
        """The weight's."""
        return next(v for v in self.scales.inputs if v is not self.rounding.outputs[1])

    def replace(self, build: Builder, y: ir.Value) -> None:
        build.replace([y], [self.mul.outputs[0]], [self.product, self.cast, self.mul])
        drop_unread([self.scales, self.rounding])


def _only_reader(value: ir.Value, op_type: str) -> ir.Node:
    users = [user for user, _ in value.uses()]
    if len(users) != 1 or value.is_graph_output() or (users[0].domain, users[0].op_type) != ("", op_type):
        raise Left(f"is quantised already, and its result is not read by {op_type} alone")
    return users[0]


def drop_unread(nodes: Sequence[ir.Node]) -> None:
    for node in nodes:
        if node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            node.graph.remove(node, safe=True)


def dynamic_fused(context: Context, node: ir.Node) -> None:
    """DynamicQuantizeMatMul: (A, B, scale, zero point, bias). Raises Left."""
    a, b, scale, zero, bias = (*node.inputs, None, None)[:5]
    _put(context, node, a, (b, scale, zero), bias)


def to_float(context: Context, node: ir.Node) -> None:
    """MatMulIntegerToFloat: (A, B, scale of A, scale of B, zero point of A, of B, bias). Raises Left."""
    a, b, _, scale, _, zero, bias = (*node.inputs, None, None, None)[:7]
    may(context)
    rounding = source(a, "DynamicQuantizeLinear")
    _put(context, node, rounding.inputs[0], (b, scale, zero), bias)
    drop_unread([rounding])


def _put(
    context: Context,
    node: ir.Node,
    x: ir.Value | None,
    weight: tuple[ir.Value | None, ir.Value | None, ir.Value | None],
    bias: ir.Value | None,
) -> None:
    may(context)
    integers = _Integers.of(context, *weight)
    table = integers.table(context, _wanted(context, node, integers))
    build = Builder(context, node)
    y = product(build, x, table)
    if bias is not None:
        y = build.op("Add", [y, bias])
    build.note(WAS_INTEGERS)
    build.replace([y])


def static(context: Context, node: ir.Node) -> None:
    """QLinearMatMul: its operand dequantised, its result quantised as before. Raises Left."""
    may(context)
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    integers = _Integers.of(context, b, b_scale, b_zero)
    table = integers.table(context, _wanted(context, node, integers))
    build = Builder(context, node)
    x = build.op("DequantizeLinear", [a, a_scale, a_zero])
    y = product(build, x, table)
    build.note(WAS_INTEGERS)
    build.replace([build.op("QuantizeLinear", [y, y_scale, y_zero])])


def lstm(context: Context, node: ir.Node) -> None:
    """DynamicQuantizeLSTM: a LSTM of floats, which is then that rule's matter. Raises Left."""
    may(context)
    x, w, r, b, lengths, h, c, peepholes, *scales = (*node.inputs, *[None] * 12)[:12]
    weights = [context.constant(w), context.constant(r, "recurrent weight")]
    shapes = [(shape[0], shape[2], shape[1]) for shape in (c.shape for c in weights) if len(shape) == 3]
    if len(shapes) != 2 or any(constant.dtype not in BYTES for constant in weights):
        raise Left("is quantised already, in a way that is not read")
    for i, constant in enumerate(weights):
        _check_stack(constant, *(context.constant(v, "scale") for v in scales[2 * i : 2 * i + 2]))
    recurrent.check(node, "LSTM", shapes[0], shapes[1], (lengths, peepholes))
    context.check(node, None, shapes[0][2], shapes[0][1], "LSTM")
    build = Builder(context, node)
    tables = []
    for i, constant in enumerate(weights):
        scale, zero = (context.constant(v, "scale") for v in scales[2 * i : 2 * i + 2])
        tables.append(_stack(context, constant, scale, zero, f"{node.name}/{i}"))
    tables = [build.op("Reshape", [t, build.integers(s)]) for t, s in zip(tables, shapes, strict=True)]
    settings = {name: attribute.value for name, attribute in node.attributes.items()}
    count = len(node.outputs)
    build.product_of("LSTM", [x, *tables, b, None, h, c], settings, origin="LSTM", outputs=count)
    build.note(WAS_INTEGERS)
    made = build.made
    build.replace(list(made.outputs))
    recurrent.express(context, made)


def _check_stack(weight: Constant, scale: Constant, zero: Constant) -> None:
    d, _, n = weight.shape
    if scale.size not in (d, d * n) or zero.size != scale.size or scale.dtype not in FLOAT_TYPES:
        raise Left("is quantised already, with scales that do not fit its columns")


def _stack(context: Context, weight: Constant, scale: Constant, zero: Constant, name: str) -> ir.Value:
    """Integers [D, K, N], scales [D] or [D, N] -> a table [D * N, K]."""
    d, k, n = weight.shape

    def values() -> NDArray[np.float32]:
        whole = (d, 1, scale.size // d)
        numbers = weight.numpy().astype(np.float32) - zero.numpy().astype(np.float32).reshape(whole)
        numbers = numbers * scale.numpy().astype(np.float32).reshape(whole)
        return np.asarray(numbers.transpose(0, 2, 1).reshape(d * n, k))

    return put(context, Quantised(name, (d * n, k), values), scale.dtype, (weight, scale, zero))
