"""Round to nearest: every block is rounded by itself, after the scale rule has chosen its scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mxort import _native
from mxort.quantize.base import QuantizedWeight, Settings, squared_error

STEPS_PER_OCTAVE = 8
"""Multipliers tried for a column: 2**(i/8). Whole octaves are what the block scales already cover."""


def quantize(rows: NDArray[np.float32], settings: Settings) -> QuantizedWeight:
    """rows float32 [n, ceil(K/32)*32] -> their packed form; see :data:`mxort.quantize.base.Algorithm`."""
    if not settings.column_multiplier:
        return with_multiplier(rows, 1.0, settings)
    candidates = with_multipliers(rows, STEPS_PER_OCTAVE, settings)
    best = next(candidates)
    best_error = squared_error(rows, best)
    for candidate in candidates:
        error = squared_error(rows, candidate)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = replace(
            best,
            codes=np.where(better[:, None], candidate.codes, best.codes),
            scales=np.where(better[:, None], candidate.scales, best.scales),
            column_scale=np.where(better, candidate.column_scale, best.column_scale),
        )
    return best


def with_multipliers(rows: NDArray[np.float32], count: int, settings: Settings) -> Iterator[QuantizedWeight]:
    """The rows rounded with each of ``count`` multipliers at equal ratios within an octave."""
    return (with_multiplier(rows, 2.0 ** (step / count), settings) for step in range(count))


def with_multiplier(rows: NDArray[np.float32], multiplier: float, settings: Settings) -> QuantizedWeight:
    """The rows rounded to nearest, all with the same multiplier."""
    column_scale = np.full(len(rows), multiplier, np.float32)
    divided = rows if multiplier == 1 else rows / column_scale[:, None]
    codes, scales = _native.quantize_weights(divided, settings.scale_rule, settings.weight_format)
    return QuantizedWeight(codes, scales, column_scale, weight_format=settings.weight_format)
