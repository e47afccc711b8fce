"""What every quantisation algorithm takes and gives, and the arithmetic they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort import _native
from mxort.errors import MxortError
from mxort.formats import (
    BLOCK_SIZE,
    E2M1,
    SCALE_NAN,
    WEIGHT_FORMATS,
    ElementFormat,
    scale_value,
    unpack_codes,
    unpack_nibbles,
)
from mxort.quantize.statistics import Statistics


@dataclass(frozen=True)
class QuantizedWeight:
    """Rows in a weight format: row n of W^T is about the dequantised row n times column_scale[n].

    codes uint8 [N, ceil(K/32)*block_bytes], scales uint8 [N, ceil(K/32)], column_scale float32 [N]. ``note`` tells the
    user what did not go as asked; ``weight_format`` is a name in :data:`mxort.formats.WEIGHT_FORMATS`. ``losses`` of
    an algorithm that minimises one: the sums that plain rounding and it leave, in the same unit.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    column_scale: NDArray[np.float32]
    note: str = ""
    weight_format: str = "mxfp4"
    losses: tuple[float, float] | None = None

    @property
    def element(self) -> ElementFormat:
        return WEIGHT_FORMATS[self.weight_format]

    @property
    def finite(self) -> bool:
        """False where the source had a NaN or an infinity (its block then has the NaN scale)."""
        return not bool((self.scales == SCALE_NAN).any())


@dataclass(frozen=True)
class Settings:
    """What an algorithm is told about the weight before it: the options of the recipe that concern it.

    ``scale_rule`` is a name in :data:`mxort.scales.SCALE_RULES`; ``column_multiplier`` asks for the search of
    a float32 multiplier for every output column. ``statistics`` is what calibration learnt, in the basis of the
    rows; ``damping`` is added to the Hessian's diagonal, in units of its mean. ``effort`` is the recipe's.
    """

    scale_rule: str = "mse"
    column_multiplier: bool = False
    statistics: Statistics | None = None
    damping: float = 0.01
    weight_format: str = "mxfp4"
    effort: int = 1


Round = Callable[[NDArray[np.float32], Settings], QuantizedWeight]
"""(rows float32 [n, ceil(K/32)*32], C-contiguous; settings) -> their packed form.

Deterministic, and row n of the result depends on row n alone: a weight is handed over in chunks of rows.
"""


@dataclass(frozen=True)
class Algorithm:
    """How weights are rounded. ``calibrated``: needs statistics. ``rotation``: used where none is asked for.

    ``smooth``: operands are smoothed first (:mod:`mxort.quantize.smoothquant`). ``hessian``: it solves with the
    Hessian of the operand, so that ``damping`` and ``effort`` mean something.
    """

    quantize: Round
    calibrated: bool = False
    rotation: int = 1
    smooth: bool = False
    hessian: bool = False


_BYTES = np.arange(1 << 8, dtype=np.uint8)
_PAIR_OF_BYTE = E2M1.decode(unpack_nibbles(_BYTES[:, None])).view(np.complex64).reshape(-1)
"""The two float32 of every byte as one 8-byte element, so that unpacking is one table look-up per byte."""


def dequantize(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8], fmt: ElementFormat = E2M1
) -> NDArray[np.float32]:
    """float32 [n, ceil(K/32)*32] of packed rows: ``formats.dequantize`` with the tail, and faster for MXFP4."""
    if fmt is E2M1:
        values = _PAIR_OF_BYTE[codes].view(np.float32)
    else:
        values = fmt.values[unpack_codes(codes, fmt)]
    values = values.reshape(*scales.shape, BLOCK_SIZE)
    values *= scale_value(scales)[..., None]
    return values.reshape(len(scales), -1)


def sums_of_rows(
    rows: NDArray[np.float32], quantized: QuantizedWeight
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """float64 [n] each: of every row the sums of (row - dequantised row)**2 and of row**2, in float64.

    rows float32 [n, ceil(K/32)*32].
    """
    packed = quantized.codes, quantized.scales, quantized.column_scale
    return _native.sums_of_rows(rows, *packed, quantized.weight_format)


def with_torch(module: str) -> Any:
    """A module of this package that needs torch, which only calibration does. Raises MxortError without it."""
    try:
        return import_module(f"mxort.quantize.{module}")
    except ImportError as error:
        raise MxortError(f"calibration needs torch ({error}): pip install 'mxort[calibrate]'") from None
