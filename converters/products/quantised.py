"""Weights that another tool has quantised, as tables of rows W^T [N, K] that are read when somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import Constant
from mxort.converters.lazy_weights import Bytes, LazyWeight
from mxort.converters.products.base import Builder, Context
from mxort.formats import E2M1, pack_codes, scale_value, to_blocks
from mxort.scales import quantize_blocks

AGAIN = "is quantised already (requantize rounds it again, with a loss)"
"""Why such a weight stays, where it is not MXFP4 and nobody asked for more."""


class Quantised:
    """Rows [N, K] of ``values``; those that are MXFP4 already have their ``codes``, and know their operand's format."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        values: Callable[[], NDArray[Any]],
        codes: Callable[[], tuple[Bytes, Bytes]] | None = None,
        activation_format: str | None = None,
    ) -> None:
        self.name, self.shape, self.activation_format = name, shape, activation_format
        self._values, self._codes = values, codes

    def values(self) -> NDArray[Any]:
        return self._values()

    def packed(self) -> tuple[Bytes, Bytes] | None:
        """Codes uint8 [N, ceil(K/32)*16] and scales uint8 [N, ceil(K/32)]."""
        return None if self._codes is None else self._codes()

    @property
    def is_packed(self) -> bool:
        return self._codes is not None


def put(context: Context, rows: Quantised, dtype: ir.DataType, sources: tuple[Constant, ...]) -> ir.Value:
    """The rows as an initializer [N, K], one for the same ``sources``; its bytes in the file are theirs."""
    key = (*(source.identity for source in sources), rows.shape, dtype)
    if key not in context.tables:
        tensor = LazyWeight([rows], False, dtype, context.unique(f"{rows.name}/rows"))
        tensor.source_bytes = sum(source.nbytes for source in sources)
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(dtype), shape=ir.Shape(rows.shape), const_value=tensor
        )
        context.model.graph.register_initializer(value)
        context.tables[key] = value
    return context.tables[key]


def product(build: Builder, x: ir.Value | None, rows: ir.Value) -> ir.Value:
    """x . rows^T, an ordinary MatMul: what it was is in its note."""
    return build.product(x, build.op("Transpose", [rows], perm=[1, 0]), origin="MatMul")


def exact(values: NDArray[Any]) -> tuple[Bytes, Bytes] | None:
    """Codes and scales of rows [N, K] that MXFP4 holds exactly, in blocks from the first column on; else None."""
    codes, scales = quantize_blocks(to_blocks(values.astype(np.float32)), E2M1, "floor")
    if not np.array_equal(decoded(codes, scales, values.shape[1]), values):
        return None
    return pack_codes(codes.reshape(len(codes), -1), E2M1), scales


def decoded(codes: NDArray[np.uint8], scales: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """float32 [N, K] of codes [N, ceil(K/32), 32] and scales [N, ceil(K/32)]."""
    numbers = E2M1.values[codes] * scale_value(scales)[..., None]
    return np.asarray(numbers.reshape(len(codes), -1)[:, :k])


def unpacked(nibbles: Bytes, bits: int) -> NDArray[np.uint8]:
    """Integers of 2, 4 or 8 bits [..., n * 8 / bits] from bytes [..., n], the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (nibbles[..., None] >> shifts) & np.uint8(2**bits - 1)
    return np.asarray(parts.reshape(*nibbles.shape[:-1], -1))
