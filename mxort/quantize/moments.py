"""Gathering statistics of operands, in torch, with the arithmetic of the operator's rounding of A."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mxort.formats import (
    ACTIVATION_FORMATS,
    BLOCK_SIZE,
    SCALE_BIAS,
    SCALE_NAN,
    ElementFormat,
    hadamard_rotate,
)
from mxort.quantize.statistics import Statistics

_FLOAT32_MANTISSA_BITS = 23


def round_elements(x: Tensor, fmt: ElementFormat) -> Tensor:
    """The nearest value of ``fmt`` to each finite float32, ties to the even code, saturating."""
    magnitude = x.abs()
    exponent = (torch.frexp(magnitude)[1] - 1).clamp_(min=1 - fmt.bias)
    step = torch.exp2((exponent - fmt.mantissa_bits).float())
    return (torch.round(magnitude / step) * step).clamp_(max=fmt.max).copysign_(x)


def round_activations(x: Tensor, fmt: ElementFormat) -> Tensor:
    """float32 [n, K] rounded as the operator rounds A: blocks of 32 along K, scale rule even."""
    blocks = x.reshape(len(x), -1, BLOCK_SIZE)
    half_ulp = 1 << (_FLOAT32_MANTISSA_BITS - fmt.mantissa_bits - 1)
    absmax = blocks.abs().amax(dim=-1, keepdim=True)
    biased = (absmax.view(torch.int32) + half_ulp) >> _FLOAT32_MANTISSA_BITS
    exponent = (biased - SCALE_BIAS - fmt.emax).clamp_(-SCALE_BIAS, SCALE_NAN - 1 - SCALE_BIAS)
    scale = torch.ldexp(torch.ones_like(absmax), exponent)
    return (round_elements(blocks / scale, fmt) * scale).reshape(x.shape)


_ROWS_AT_ONCE = 4096
"""Rows whose products are summed in float32 before they go to a float64 sum: it reads all of [K, K]."""

_PANELS = 4
"""Parts in which a symmetric product is made: a quarter of one quarter's rows and so on, 5/8 of the work."""


_NEAR = 16
"""Binary orders between operands that are summed in one unit: squares of float32 have no room for all there are."""


class _Sum:
    """The sum over rows of a^T b, float64 [K, K], by products in float32 of a few thousand rows.

    a and b come divided by a power of two, 2^``unit``, so that their products neither over- nor underflow.
    """

    def __init__(self, k: int) -> None:
        self._total = torch.zeros(k, k, dtype=torch.float64)
        self._part = torch.zeros(k, k)
        self._rows = self._unit = 0

    def measure_in(self, unit: int) -> None:
        """What is added from now on is in units of 2^``unit``."""
        if unit != self._unit:
            self._flush()
            self._unit = unit

    def add(self, a: Tensor, b: Tensor) -> None:
        """a, b float32 [n, K]"""
        self._part.addmm_(a.T, b)
        self._count(len(a))

    def add_symmetric(self, x: Tensor) -> None:
        """x^T x, of which the part below the diagonal is filled in by :meth:`symmetric`."""
        step = max(1, -(-x.shape[1] // _PANELS))
        for stop in range(step, x.shape[1] + step, step):
            self._part[:stop, stop - step : stop].addmm_(x[:, :stop].T, x[:, stop - step : stop])
        self._count(len(x))

    def _count(self, rows: int) -> None:
        self._rows += rows
        if self._rows >= _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._total.add_(self._part, alpha=4.0**self._unit)
        self._part.zero_()
        self._rows = 0

    def mean(self, count: int) -> Tensor:
        """The sum divided by ``count``. Ends the summing."""
        self._flush()
        return self._total.div_(count)

    def symmetric_mean(self, count: int) -> Tensor:
        """The same where only :meth:`add_symmetric` was called."""
        upper = self.mean(count).triu_()
        return upper + upper.triu(1).T


def _largest(x: Tensor) -> float:
    """The largest magnitude, in one pass and without a copy; NaN where there is one."""
    if not x.numel():
        return 0.0
    low, high = (float(end) for end in x.aminmax())
    return math.nan if math.isnan(low) or math.isnan(high) else max(-low, high)


class Moments:
    """Accumulates :class:`Statistics` of an operand: products in float32, sums in float64.

    With an activation format every operand is rotated and rounded first. Without one, rotating the sums at the
    end is the same and cheaper.
    """

    def __init__(self, k: int, rotation: int, activation_format: str) -> None:
        self._k, self._rotation, self._format = k, rotation, ACTIVATION_FORMATS[activation_format]
        self._rows = self._left_out = self._unit = 0
        self._hessian = _Sum(k)
        self._drift: _Sum | None = None

    def add(self, rows: NDArray[np.float32], wanted: NDArray[np.float32] | None = None) -> None:
        """Rows [n, k] of the operand, and the same rows in the float model where they differ.

        Rows that are not finite, as at positions of padding that nobody reads, are left out and counted.
        """
        plain = self._rotated(rows)
        target = plain if wanted is None else self._rotated(wanted)
        if not (math.isfinite(_largest(plain)) and math.isfinite(_largest(target))):
            finite = plain.isfinite().all(dim=1) & target.isfinite().all(dim=1)
            plain, target = plain[finite], target[finite]
        self._left_out += len(rows) - len(plain)
        if not len(plain):
            return
        self._rows += len(plain)
        x = plain if self._format is None else round_activations(plain, self._format)
        self._choose_unit(_largest(x))
        if self._unit:
            x, target = (operand * 2.0**-self._unit for operand in (x, target))
        self._hessian.measure_in(self._unit)
        self._hessian.add_symmetric(x)
        if wanted is None and self._format is None:
            return
        if self._drift is None:
            self._drift = _Sum(self._k)
        self._drift.measure_in(self._unit)
        self._drift.add(target - x, x)

    def _choose_unit(self, largest: float) -> None:
        exponent = math.frexp(largest)[1]
        if largest and abs(exponent - self._unit) > _NEAR:
            self._unit = min(max(exponent, -126), 126)  # of which float32 has the power and its inverse

    def _rotated(self, rows: NDArray[np.float32]) -> Tensor:
        padded = np.pad(rows, ((0, 0), (0, self._k - rows.shape[1]))) if rows.shape[1] < self._k else rows
        return torch.as_tensor(padded if self._format is None else hadamard_rotate(padded, self._rotation))

    def statistics(self) -> Statistics:
        """The means, in the basis of the rotated operand. Ends the gathering."""
        count = max(1, self._rows)
        result = Statistics(
            self._hessian.symmetric_mean(count).numpy(force=True),
            self._rows,
            None if self._drift is None else self._drift.mean(count).numpy(force=True),
            self._left_out,
        )
        return result.rotated(self._rotation) if self._format is None else result


@contextmanager
def computing(threads: int, device: torch.device) -> Iterator[None]:
    """torch works with so many threads meanwhile (0: as many as it likes), and on that device.

    What is made from NumPy arrays lands there with ``as_tensor`` and comes back with ``numpy(force=True)``.
    """
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with nullcontext() if device.type == "cpu" else device:  # the context takes 1 us a call
            yield
    finally:
        torch.set_num_threads(before)


class Linear:
    """The float layer: a [..., K] -> a . W + bias, with W^T [N, K]."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        self._weight, self._bias = torch.as_tensor(weight), torch.as_tensor(bias)

    def __call__(self, a: NDArray[np.float32]) -> NDArray[np.float32]:
        product = torch.nn.functional.linear(torch.as_tensor(a), self._weight, self._bias)
        result: NDArray[np.float32] = product.numpy(force=True)
        return result
