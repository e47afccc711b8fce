"""Weights behind DequantizeLinear: those that are MXFP4, as codes or as numbers, are packed as they are.

The standard's own form is FLOAT4E2M1 with scales in FLOAT8E8M0 and blocks of 32; int8 numbers with scales that are
powers of two may be MXFP4 too. Others are rounded once more where a recipe asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import FLOAT_TYPES, Constant
from mxort.converters.lazy_weights import Bytes
from mxort.converters.products.base import Context, Left, attribute_ints
from mxort.converters.products.quantised import AGAIN, Quantised, exact, put
from mxort.converters.rewrite import drop_dead
from mxort.converters.sites import NOTE
from mxort.formats import BLOCK_SIZE, E2M1, pack_codes

_INTEGERS = (
    *(ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4),
    *(ir.DataType.INT2, ir.DataType.UINT2),
)


@dataclass(frozen=True)
class Readers:
    """The products that read a weight [rows, columns], directly or transposed; ``k_axis`` is the axis that they sum."""

    value: ir.Value
    nodes: tuple[ir.Node, ...]
    k_axis: int

    def read(self, context: Context, rows: ir.Value) -> None:
        """Has them read the table ``rows`` [N, K] in the weight's place."""
        node = self.value.producer()
        assert node is not None and node.graph is not None
        new = rows
        if self.k_axis == 0:
            turned = ir.node("Transpose", [rows], {"perm": [1, 0]}, name=f"{node.name}/Transpose")
            turned.outputs[0].name = context.unique(f"{self.value.name}/rows")
            node.graph.insert_before(node, turned)
            new = turned.outputs[0]
        self.value.replace_all_uses_with(new)
        sources = [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)
        drop_dead(sources)


def readers_of(context: Context, node: ir.Node, weight: Constant) -> Readers:
    """Who reads a node's output. Raises Left where that is anything but products which are to be converted."""
    value = node.outputs[0]
    found = list(_products(value))
    products = tuple(dict.fromkeys(reader for reader, _ in found))
    if len(weight.shape) != 2 or not found or value.is_graph_output():
        raise Left(f"is quantised already ({node.op_type})", products)
    axes = {axis for _, axis in found}
    if len(axes) != 1 or None in axes:
        raise Left(f"is quantised already ({node.op_type}), and not read by products alone", products)
    (k_axis,) = axes
    assert k_axis is not None
    k, n = weight.shape[k_axis], weight.shape[1 - k_axis]
    for reader in products:
        try:
            context.check(reader, None, k, n)
        except Left as left:
            raise Left(str(left), products) from None
    return Readers(value, products, k_axis)


def _products(value: ir.Value, turned: bool = False) -> Iterable[tuple[ir.Node, int | None]]:
    """(product, axis of the weight that it sums; None: it is none that reads a weight)."""
    for user, index in value.uses():
        kind = user.op_type if user.domain == "" else ""
        if kind == "Transpose" and not turned and attribute_ints(user, "perm", (1, 0)) == [1, 0]:
            yield from _products(user.outputs[0], True)
        elif kind == "MatMul" and index == 1:
            yield user, int(turned)
        elif kind == "Gemm" and index == 1:
            yield user, int(turned) ^ user.attributes.get_int("transB", 0)
        else:
            yield user, None


def express(context: Context, node: ir.Node) -> None:
    """Raises Left, at the products that read a weight which stays."""
    data, scale, point = (*node.inputs, None)[:3]
    if not context.is_constant(data):
        return  # an activation
    weight, factors = context.constant(data), context.constant(scale, "scale")
    readers = readers_of(context, node, weight)
    zeros = None if point is None else context.constant(point, "zero point")
    form = _Form(
        weight, factors, zeros, node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    )
    wanted = node.attributes.get_int("output_dtype", 0)
    dtype = ir.DataType(wanted) if wanted else factors.dtype
    if dtype == ir.DataType.FLOAT8E8M0:
        dtype = ir.DataType.FLOAT
    if dtype not in FLOAT_TYPES or not form.fits():
        raise Left("is quantised already (DequantizeLinear), in a way that is not read", readers.nodes)
    n, k = weight.shape[1 - readers.k_axis], weight.shape[readers.k_axis]
    codes = form.codes(readers.k_axis)

    def values() -> NDArray[np.float32]:
        numbers = form.numbers()
        return numbers.T if readers.k_axis == 0 else numbers

    if codes is None and not context.selection.requantize:
        raise Left(AGAIN, readers.nodes)
    kept = None if codes is None else lambda: codes
    rows = Quantised(node.name or "weight", (n, k), values, kept)
    if codes is None:
        for reader in readers.nodes:
            reader.meta[NOTE] = f"was {weight.dtype.name.lower()}"
    readers.read(context, put(context, rows, dtype, (weight, factors, *(() if zeros is None else (zeros,)))))


@dataclass(frozen=True)
class _Form:
    """A DequantizeLinear of a matrix: one scale for all, for each index of ``axis``, or for each block there."""

    weight: Constant
    factors: Constant
    zeros: Constant | None
    axis_given: int
    block: int

    @property
    def axis(self) -> int:
        return self.axis_given % 2

    def fits(self) -> bool:
        shape = self.weight.shape
        per_axis = (shape[self.axis],)
        blocks = [*shape]
        if self.block:
            blocks[self.axis] = math.ceil(shape[self.axis] / self.block)
        known = (tuple(blocks),) if self.block else ((), (1,), per_axis)
        return self.factors.shape in known and (self.zeros is None or self.zeros.shape == self.factors.shape)

    def _spread(self, constant: Constant) -> NDArray[np.float32]:
        """One number for each element."""
        array = constant.numpy().astype(np.float32)
        if self.block:
            length = self.weight.shape[self.axis]
            return np.repeat(array, self.block, self.axis).take(range(length), self.axis)
        return array.reshape(-1, 1) if self.axis == 0 and array.ndim == 1 else array

    def numbers(self) -> NDArray[np.float32]:
        numbers = self.weight.numpy().astype(np.float32)
        if self.zeros is not None:
            numbers = numbers - self._spread(self.zeros)
        return np.asarray(numbers * self._spread(self.factors))

    def codes(self, k_axis: int) -> tuple[Bytes, Bytes] | None:
        """Codes and scales of rows [N, K], where they are MXFP4 along K; None where they are not."""
        if self.weight.dtype == ir.DataType.FLOAT4E2M1 and self.factors.dtype == ir.DataType.FLOAT8E8M0:
            if self.axis != k_axis or self.block != BLOCK_SIZE or self.weight.shape[k_axis] % BLOCK_SIZE:
                return None
            elements, scales = self.weight.numpy().view(np.uint8), self.factors.numpy().view(np.uint8)
            if k_axis == 0:
                elements, scales = elements.T, scales.T
            return pack_codes(np.ascontiguousarray(elements), E2M1), np.ascontiguousarray(scales)
        if self.weight.dtype not in (*_INTEGERS, ir.DataType.FLOAT4E2M1):
            return None
        numbers = self.numbers()
        return exact(numbers.T if k_axis == 0 else numbers)
