"""Round to nearest: every block is rounded by itself, after the scale rule has chosen its scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mxort import _native
from mxort.quantize.base import QuantizedWeight, Settings, squared_error

STEPS_PER_OCTAVE = 8
"""Multipliers tried for a column: 2**(i/8). Whole octaves are what the block scales already cover."""


def quantize(rows: NDArray[np.float32], settings: Settings) -> QuantizedWeight:
    """rows float32 [n, ceil(K/32)*32] -> their packed form; see :data:`mxort.quantize.base.Algorithm`."""
    best = _round(rows, np.ones(len(rows), np.float32), settings)
    if not settings.column_multiplier:
        return best
    best_error = squared_error(rows, best)
    for step in range(1, STEPS_PER_OCTAVE):
        multiplier = np.full(len(rows), 2.0 ** (step / STEPS_PER_OCTAVE), np.float32)
        candidate = _round(rows / multiplier[:, None], multiplier, settings)
        error = squared_error(rows, candidate)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = replace(
            best,
            codes=np.where(better[:, None], candidate.codes, best.codes),
            scales=np.where(better[:, None], candidate.scales, best.scales),
            column_scale=np.where(better, multiplier, best.column_scale),
        )
    return best


def _round(rows: NDArray[np.float32], multiplier: NDArray[np.float32], settings: Settings) -> QuantizedWeight:
    codes, scales = _native.quantize_weights(rows, settings.scale_rule, settings.weight_format)
    return QuantizedWeight(codes, scales, multiplier, weight_format=settings.weight_format)
