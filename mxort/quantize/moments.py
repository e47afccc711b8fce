"""Gathering statistics of operands, in torch, with the arithmetic of the operator's rounding of A."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


class Moments:
    """Accumulates :class:`Statistics` of an operand: products in float32 sample by sample, sums in float64.

    With an activation format every operand is rotated and rounded first. Without one, rotating the sums at the
    end is the same and cheaper.
    """

    def __init__(self, k: int, rotation: int, activation_format: str) -> None:
        self._k, self._rotation, self._format = k, rotation, ACTIVATION_FORMATS[activation_format]
        self._rows = 0
        self._hessian = torch.zeros(k, k, dtype=torch.float64)
        self._sum = torch.zeros(k, dtype=torch.float64)
        self._absmax = torch.zeros(k)
        self._drift: Tensor | None = None

    def add(self, rows: NDArray[np.float32], wanted: NDArray[np.float32] | None = None) -> None:
        """Rows [n, k] of the operand, and the same rows in the float model where they differ."""
        if not len(rows):
            return
        plain = self._rotated(rows)
        x = plain if self._format is None else round_activations(plain, self._format)
        self._hessian += x.T @ x
        self._sum += x.sum(dim=0, dtype=torch.float64)
        self._absmax = torch.maximum(self._absmax, x.abs().amax(dim=0))
        self._rows += len(x)
        if wanted is None and self._format is None:
            return
        drift = (plain if wanted is None else self._rotated(wanted)) - x
        if self._drift is None:
            self._drift = torch.zeros_like(self._hessian)
        self._drift += drift.T @ x

    def _rotated(self, rows: NDArray[np.float32]) -> Tensor:
        padded = np.pad(rows, ((0, 0), (0, self._k - rows.shape[1]))) if rows.shape[1] < self._k else rows
        return torch.from_numpy(padded if self._format is None else hadamard_rotate(padded, self._rotation))

    def statistics(self) -> Statistics:
        """The means, in the basis of the rotated operand."""
        count = max(1, self._rows)
        result = Statistics(
            (self._hessian / count).numpy(),
            (self._sum / count).numpy(),
            self._absmax.double().numpy(),
            self._rows,
            None if self._drift is None else (self._drift / count).numpy(),
        )
        return result.rotated(self._rotation) if self._format is None else result


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """torch works with ``count`` threads meanwhile (0: as many as it likes)."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Linear:
    """The float layer: a [..., K] -> a . W + bias, with W^T [N, K]."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        self._weight, self._bias = torch.from_numpy(weight), torch.from_numpy(bias)

    def __call__(self, a: NDArray[np.float32]) -> NDArray[np.float32]:
        product = torch.nn.functional.linear(torch.from_numpy(a), self._weight, self._bias)
        result: NDArray[np.float32] = product.numpy()
        return result
