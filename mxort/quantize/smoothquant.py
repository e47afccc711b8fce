"""SmoothQuant (arXiv 2211.10438): the channels of an operand are divided by s and the weight's rows multiplied.

Nothing changes but what rounding sees. With s_j = absmax(x_j)^alpha / absmax(w_j)^(1 - alpha) a large alpha evens out
the operand, which W4A4 needs, and a small one the weight. Which alpha is best is tried layer by layer: the one
whose rounded product is nearest to the float product on calibration data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mxort.formats import ACTIVATION_FORMATS, hadamard_rotate
from mxort.quantize import rtn
from mxort.quantize.base import Settings, dequantize, with_torch

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What ``auto`` tries, besides leaving the operand as it is."""

SAMPLED_ROWS = 1024
"""Rows of the operand on which alphas are compared; more change the choice hardly and the time in proportion."""

LARGEST = 2.0**10
"""s is limited to 1/LARGEST .. LARGEST: dead channels have no reason to go further."""

quantize = rtn.quantize


@dataclass(frozen=True)
class Layers:
    """The layers that share an operand: their weights W^T, float32 [N, ceil(K/32)*32] each, and how they will run.

    ``weight_formats`` has one for each weight; empty where all have that of the settings.
    """

    weights: Sequence[NDArray[np.float32]]
    rotation: int
    activation_format: str
    weight_formats: Sequence[str] = ()


@dataclass(frozen=True)
class Smoothing:
    """``scale`` float32 [ceil(K/32)*32], s; ``alpha``; the layers' mean relative squared errors without and with s."""

    scale: NDArray[np.float32]
    alpha: float
    error_before: float
    error_after: float


def scale_of(
    absmax: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], alpha: float
) -> NDArray[np.float32]:
    """s float32 [K] of an operand's largest magnitudes [K]; one where the channel or its weights are zero.

    Scaled as a whole to a geometric mean of one.
    """
    rows = np.max([np.abs(w).max(axis=0) for w in weights], axis=0).astype(np.float64)
    used = (absmax > 0) & (rows > 0)
    logarithm = np.zeros(len(rows))
    logarithm[used] = alpha * np.log2(absmax[used]) - (1 - alpha) * np.log2(rows[used])
    if used.any():
        logarithm[used] -= logarithm[used].mean()
    bound = np.log2(LARGEST)
    return np.exp2(np.clip(logarithm, -bound, bound)).astype(np.float32)


def choose(
    x: NDArray[np.float32],
    absmax: NDArray[np.float32],
    layers: Layers,
    settings: Settings,
    alpha: float | None = None,
) -> Smoothing | None:
    """The best smoothing of the operand whose rows are ``x`` [n, K], K a multiple of 32; None where none is better.

    With an ``alpha`` it is that one, better or not. Raises MxortError without torch.
    """
    if not len(x) or not all(np.isfinite(w).all() for w in (x, *layers.weights)):
        return None
    before = error(x, np.ones_like(absmax), layers, settings)
    tried = []
    for value in ALPHAS if alpha is None else (alpha,):
        scale = scale_of(absmax, layers.weights, value)
        tried.append(Smoothing(scale, value, before, error(x, scale, layers, settings)))
    best = min(tried, key=lambda smoothing: smoothing.error_after)
    return best if alpha is not None or best.error_after < before else None


def error(x: NDArray[np.float32], scale: NDArray[np.float32], layers: Layers, settings: Settings) -> float:
    """Mean over the layers of |Q(x / s) Q(s W) - x W|^2 / |x W|^2, weights rounded to nearest."""
    torch, moments = with_torch("solver").torch, with_torch("moments")
    smooth = torch.as_tensor(hadamard_rotate(x / scale, layers.rotation))
    fmt = ACTIVATION_FORMATS[layers.activation_format]
    operand = smooth if fmt is None else moments.round_activations(smooth, fmt)
    total = 0.0
    formats = layers.weight_formats or [settings.weight_format] * len(layers.weights)
    for weight, name in zip(layers.weights, formats, strict=True):
        heavy = hadamard_rotate(weight * scale, layers.rotation)
        rounded = rtn.quantize(heavy, replace(settings, weight_format=name))
        stored = dequantize(rounded.codes, rounded.scales, rounded.element) * rounded.column_scale[:, None]
        wanted = torch.as_tensor(x) @ torch.as_tensor(weight).T
        noise = (operand @ torch.as_tensor(stored).T - wanted).double().square().sum()
        signal = wanted.double().square().sum()
        total += float(noise / signal) if signal > 0 else 0.0
    return total / len(layers.weights)
