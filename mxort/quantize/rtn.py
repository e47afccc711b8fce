"""Round to nearest: every block is rounded by itself, after the scale rule has chosen its scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mxort import _native
from mxort.quantize.base import QuantizedWeight, Settings

STEPS_PER_OCTAVE = 8
"""Multipliers tried for a column: 2**(i/8). Whole octaves are what the block scales already cover."""


def quantize(rows: NDArray[np.float32], settings: Settings) -> QuantizedWeight:
    """rows float32 [n, ceil(K/32)*32] -> their packed form; see :data:`mxort.quantize.base.Algorithm`."""
    if not settings.column_multiplier:
        return with_multiplier(rows, 1.0, settings)
    multipliers = [2.0 ** (step / STEPS_PER_OCTAVE) for step in range(STEPS_PER_OCTAVE)]
    best = _native.quantize_best(rows, multipliers, settings.scale_rule, settings.weight_format)
    return QuantizedWeight(*best, weight_format=settings.weight_format)


def with_multipliers(rows: NDArray[np.float32], count: int, settings: Settings) -> Iterator[QuantizedWeight]:
    """The rows rounded with each of ``count`` multipliers at equal ratios within an octave."""
    return (with_multiplier(rows, 2.0 ** (step / count), settings) for step in range(count))


def with_multiplier(rows: NDArray[np.float32], multiplier: float, settings: Settings) -> QuantizedWeight:
    """The rows rounded to nearest, all with the same multiplier."""
    packed = _native.quantize_best(rows, [multiplier], settings.scale_rule, settings.weight_format)
    return QuantizedWeight(*packed, weight_format=settings.weight_format)
