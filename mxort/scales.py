"""Scale rules: how the E8M0 scale of a block of 32 values is chosen. One table, ``SCALE_RULES``.

Every rule returns the exponent e of the scale 2**e before it is clamped to what E8M0 holds. A block without a
non-zero value gets the smallest scale; a block with a NaN or an infinity gets the NaN scale (and zero codes).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mxort.formats import SCALE_BIAS, SCALE_NAN, ElementFormat

ScaleRule = Callable[[NDArray[np.float32], ElementFormat], NDArray[np.int32]]
"""(finite float32 blocks [..., 32], element format) -> int32 exponents [...]."""

_FLOAT32_MANTISSA_BITS = 23
_MIN_EXPONENT = -SCALE_BIAS
_MAX_EXPONENT = SCALE_NAN - 1 - SCALE_BIAS


def _absmax(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.abs(blocks).max(axis=-1))


def _floor_log2(x: NDArray[np.float32]) -> NDArray[np.int32]:
    """floor(log2(x)) of non-negative float32; the exponent of the smallest scale where x is zero or subnormal.

    A subnormal absmax needs a scale below 2**-127 in every format but its codes are the same at the clamp.
    """
    return (x.view(np.int32) >> _FLOAT32_MANTISSA_BITS) - SCALE_BIAS


def floor_exponent(blocks: NDArray[np.float32], fmt: ElementFormat) -> NDArray[np.int32]:
    """floor(log2(absmax)) - emax: the conversion of the MX specification, section 6.3. May saturate the largest."""
    return _floor_log2(_absmax(blocks)) - fmt.emax


def even_exponent(blocks: NDArray[np.float32], fmt: ElementFormat) -> NDArray[np.int32]:
    """As floor, after absmax was rounded half up to the element's mantissa bits (AMD Quark's "even").

    The addition carries into the exponent exactly when absmax would round up to the next power of two.
    """
    half_ulp = 1 << (_FLOAT32_MANTISSA_BITS - fmt.mantissa_bits - 1)
    rounded = (_absmax(blocks).view(np.int32) + half_ulp).view(np.float32)
    return _floor_log2(rounded) - fmt.emax


def rceil_exponent(blocks: NDArray[np.float32], fmt: ElementFormat) -> NDArray[np.int32]:
    """ceil(log2(absmax / max)): the smallest scale at which nothing saturates."""
    absmax = _absmax(blocks)
    exponent = _floor_log2(absmax) - fmt.emax
    scaled = np.ldexp(absmax.astype(np.float64), -exponent)  # in [2**emax, 2**(emax+1)): exact
    return exponent + (scaled > fmt.max)


def mse_exponent(blocks: NDArray[np.float32], fmt: ElementFormat) -> NDArray[np.int32]:
    """Of floor and floor + 1 the exponent with the smaller squared error; floor where they are equal."""
    low = np.maximum(floor_exponent(blocks, fmt), _MIN_EXPONENT)
    return low + (_squared_error(blocks, low + 1, fmt) < _squared_error(blocks, low, fmt))


def _squared_error(
    blocks: NDArray[np.float32], exponent: NDArray[np.int32], fmt: ElementFormat
) -> NDArray[np.float64]:
    """Sum over each block of (x - quantised x)**2, in float64, added as a fixed tree so that C++ gives the same bits.

    Scaled by a common power of two (the block's floor scale), which changes no comparison and no rounding.
    """
    base = np.maximum(floor_exponent(blocks, fmt), _MIN_EXPONENT)
    shift = (exponent - base)[..., None]
    scaled = np.ldexp(blocks.astype(np.float64), -exponent[..., None])
    rounded = fmt.decode(fmt.encode(scaled)).astype(np.float64)
    error = np.ldexp(scaled - rounded, shift) ** 2
    while error.shape[-1] > 1:
        half = error.shape[-1] // 2
        error = error[..., :half] + error[..., half:]
    return np.asarray(error[..., 0])


SCALE_RULES: dict[str, ScaleRule] = {
    "floor": floor_exponent,
    "even": even_exponent,
    "rceil": rceil_exponent,
    "mse": mse_exponent,
}


def quantize_blocks(
    blocks: NDArray[np.float32], fmt: ElementFormat, rule: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantises float32 blocks [..., 32] -> (codes uint8 [..., 32], E8M0 scales uint8 [...]).

    Raises KeyError for an unknown rule.
    """
    finite = np.asarray(np.isfinite(blocks).all(axis=-1))
    clean = np.where(finite[..., None], blocks, np.float32(0))
    exponent = np.clip(SCALE_RULES[rule](clean, fmt), _MIN_EXPONENT, _MAX_EXPONENT)
    codes = fmt.encode(np.ldexp(clean.astype(np.float64), -exponent[..., None]))
    scales = np.where(finite, exponent + SCALE_BIAS, SCALE_NAN).astype(np.uint8)
    return codes, scales
