"""MatMulNBits and GatherBlockQuantized of com.microsoft: integers of 2, 4 or 8 bits in blocks along K.

As products and tables of the numbers that they stand for, which are then rounded once more.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import FLOAT_TYPES, Constant
from mxort.converters.products.base import Builder, Context, Left
from mxort.converters.products.quantised import AGAIN, Quantised, product, put, unpacked

_BITS = (2, 4, 8)


def matmul(context: Context, node: ir.Node) -> None:
    """Raises Left."""
    attributes = node.attributes
    k, n, block = (attributes.get_int(name, 0) for name in ("K", "N", "block_size"))
    codes, scales, points, order, bias = (*node.inputs[1:], *[None] * 5)[:5]
    bits = attributes.get_int("bits", 4)
    if not context.selection.requantize:
        raise Left(AGAIN)
    if bits not in _BITS or order is not None or attributes.get_int("weight_prepacked", 0) != 0:
        raise Left(f"is quantised to {bits} bits, or reordered, in a way that is not read")
    integers, factors = context.constant(codes), context.constant(scales, "scale")
    zeros = None if points is None else context.constant(points, "zero point")
    context.check(node, factors, k, n, "MatMul")
    table = _table(context, integers, factors, zeros, (n, k, block, bits), node.name or "weight")
    build = Builder(context, node)
    y = product(build, node.inputs[0], table)
    if bias is not None:
        y = build.op("Add", [y, bias])
    build.note(f"was {bits}-bit integers")
    build.replace([y])


def gather(context: Context, node: ir.Node) -> None:
    """Raises Left."""
    if not context.selection.requantize:
        raise Left(AGAIN)
    codes, indices, scales, points = (*node.inputs, None)[:4]
    integers, factors = context.constant(codes, "table"), context.constant(scales, "scale")
    zeros = None if points is None else context.constant(points, "zero point")
    attributes = node.attributes
    bits, block = attributes.get_int("bits", 4), attributes.get_int("block_size", 128)
    if integers.dtype != ir.DataType.UINT8 or bits not in _BITS or len(integers.shape) != 2:
        raise Left(f"is quantised as {integers.dtype.name} of {len(integers.shape)} axes, which is not read")
    if attributes.get_int("gather_axis", 0) != 0 or attributes.get_int("quantize_axis", 1) not in (1, -1):
        raise Left("is quantised along the axis that it gathers, which is not read")
    v, k = integers.shape[0], integers.shape[1] * 8 // bits
    context.check(node, factors, k, v, "Gather")
    table = _table(context, integers, factors, zeros, (v, k, block, bits), node.name or "table")
    build = Builder(context, node)
    y = build.product_of("Gather", [table, indices], {"axis": 0}, origin="Gather")
    build.note(f"was {bits}-bit integers")
    build.replace([y])


def _table(
    context: Context,
    integers: Constant,
    factors: Constant,
    zeros: Constant | None,
    sizes: tuple[int, int, int, int],
    name: str,
) -> ir.Value:
    n, k, block, bits = sizes
    blocks = math.ceil(k / block) if block > 0 else 0
    width = math.ceil(blocks * bits / 8)
    whole = blocks > 0 and integers.size in (n * blocks * block * bits // 8, n * math.ceil(k * bits / 8))
    packed_zeros = zeros is not None and zeros.dtype == ir.DataType.UINT8
    fits = zeros is None or zeros.size == n * (width if packed_zeros else blocks)
    if not whole or not fits or factors.size != n * blocks or factors.dtype not in FLOAT_TYPES:
        raise Left(f"its integers, scales and zero points do not fit [{n}, {k}] in blocks of {block}")

    def values() -> NDArray[np.float32]:
        whole_codes = unpacked(integers.numpy().reshape(n, -1), bits).astype(np.float32)
        codes = np.zeros((n, blocks * block), np.float32)
        columns = min(whole_codes.shape[1], blocks * block)
        codes[:, :columns] = whole_codes[:, :columns]
        zero = np.full((n, blocks), 2 ** (bits - 1), np.float32)
        if zeros is not None:
            given = zeros.numpy().reshape(n, -1)
            zero = (unpacked(given, bits)[:, :blocks] if packed_zeros else given).astype(np.float32)
        scale = factors.numpy().astype(np.float32).reshape(n, blocks)
        numbers = (codes.reshape(n, blocks, block) - zero[..., None]) * scale[..., None]
        return np.asarray(numbers.reshape(n, -1)[:, :k])

    sources = (integers, factors, *(() if zeros is None else (zeros,)))
    return put(context, Quantised(name, (n, k), values), factors.dtype, sources)
