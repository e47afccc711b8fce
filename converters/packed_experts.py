"""The experts of com.microsoft QMoE in MXFP4 (quant_type fp4), whose codes lie along N and are turned around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import FLOAT_TYPES, Constant, NotConstantError, Stored
from mxort.converters.lazy_weights import Bytes, LazyWeight
from mxort.converters.resolving import resolve
from mxort.formats import BLOCK_SIZE, dequantize_mxfp4, pack_nibbles, unpack_nibbles

_WEIGHTS, _SCALES, _GLOBAL = (2, 5), (3, 6), (15, 16)
"""Inputs of QMoE for the two products."""

LEFT = "is quantised already"


@dataclass(frozen=True)
class _Rows:
    """The rows [E N, K] of codes uint8 [E, K, N/2], the even n in the low nibble (``Rows`` of lazy_weights)."""

    codes: Constant
    scales: Constant
    activation_format: str | None = None
    is_packed: bool = True

    @property
    def name(self) -> str:
        return self.codes.name

    @property
    def shape(self) -> tuple[int, int]:
        e, n, blocks = self.scales.shape
        return e * n, blocks * BLOCK_SIZE

    def packed(self) -> tuple[Bytes, Bytes]:
        rows, k = self.shape
        scales = self.scales.array().view(np.uint8).reshape(rows, -1)
        experts = (
            pack_nibbles(np.ascontiguousarray(unpack_nibbles(codes).T)) for codes in self.codes.array()
        )
        return np.concatenate(list(experts)).reshape(rows, k // 2), scales

    def values(self) -> NDArray[np.float32]:
        return dequantize_mxfp4(*self.packed(), self.shape[1])


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be absent, also at the end."""
    return node.inputs[index] if index < len(node.inputs) else None


def stack(node: ir.Node, operand: int, ir_version: int) -> Constant | str:
    """The weights [E, N, K] of a product, MXFP4 already; why they stay as they are where they do."""
    if (kind := node.attributes.get_string("quant_type", "int")) != "fp4":
        return f"{LEFT} ({kind})" if kind != "int" else LEFT
    try:
        codes, scales = (resolve(input_of(node, index[operand]), ir_version) for index in (_WEIGHTS, _SCALES))
        _ = _global_scale(node, operand, ir_version)
    except NotConstantError as reason:
        return f"the experts' weight {reason}"
    if scales.dtype not in (ir.DataType.FLOAT8E8M0, ir.DataType.UINT8) or len(scales.shape) != 3:
        return f"experts with scales of shape {list(scales.shape)} and type {scales.dtype.name.lower()}"
    e, n, blocks = scales.shape
    if codes.dtype != ir.DataType.UINT8 or codes.shape != (e, blocks * BLOCK_SIZE, n // 2) or n % 2:
        return f"experts with codes of shape {list(codes.shape)} and scales of shape {list(scales.shape)}"
    lazy = LazyWeight([_Rows(codes, scales)], False, ir.DataType.FLOAT4E2M1, codes.name, experts=e)
    root = codes.source.roots[0]
    return Constant(Stored(root.root, lazy, root.holder), (e, n, blocks * BLOCK_SIZE), codes.name)


def multiplier(
    node: ir.Node, operand: int, shape: tuple[int, ...], ir_version: int
) -> NDArray[np.float32] | None:
    """What the columns of a product are multiplied by, float32 [E N]: an expert's own scale; None: nothing."""
    if node.op_type != "QMoE":
        return None
    return np.repeat(_global_scale(node, operand, ir_version), shape[1])


def _global_scale(node: ir.Node, operand: int, ir_version: int) -> NDArray[np.float32]:
    """float32 [E]. Raises NotConstantError."""
    scale = resolve(input_of(node, _GLOBAL[operand]), ir_version)
    experts = resolve(input_of(node, _SCALES[operand]), ir_version).shape[:1]
    if scale.shape != experts or scale.dtype not in FLOAT_TYPES:
        raise NotConstantError(f"has a scale of shape {list(scale.shape)}, expected {list(experts)}")
    return scale.numpy().astype(np.float32)
