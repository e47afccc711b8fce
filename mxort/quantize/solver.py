"""Linear algebra of calibrated quantisation: rounding rows so that their products err least.

With x the operand and H the mean of x x^T, a row w rounded to q costs (w - q) H (w - q)^T. Everything here works
on many rows at once, each by itself, and keeps them transposed, [K, n], so that one step along K is contiguous.
The products of matrices are torch's, on whatever device; the steps along K that follow one another are in C++, a panel
at a time, which for a GPU travels there and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mxort import _native
from mxort.formats import (
    BLOCK_SIZE,
    SCALE_BIAS,
    WEIGHT_FORMATS,
    ElementFormat,
    pack_codes,
    unpack_codes,
)
from mxort.quantize.base import QuantizedWeight
from mxort.quantize.statistics import Statistics

_PANEL = 128
"""Inputs after which the rest of the matrix is updated, by one matrix product. The native module takes no more."""

_NOTHING = 2.0**-100
"""Part of the mean square of all inputs below which an input's is taken for zero: in float32 it soon would be."""

DRIFT_DAMPING = 1.0
"""As ``damping``, for what makes good the error of earlier layers: it is fitted to few data, and other data drift
otherwise (docs/accuracy.md)."""


@dataclass(frozen=True, eq=False)
class Problem:
    """H, times a power of two, with what the solvers need of it; ``order`` is the order of rounding.

    ``upper`` is U, U^T U = H^-1 (both in that order, H damped); None where H has no inverse even so.
    ``correction`` [K, K]: a row w times it is what to add to w to get the products with the float model's
    operand out of the operand there is; None where they are the same. ``chance``: what is missing of the data's
    ``hessian`` beside its diagonal.
    """

    hessian: Tensor
    order: Tensor
    upper: Tensor | None
    correction: Tensor | None
    chance: float = 0.0

    def on_data(self, losses: Tensor, error: Tensor) -> Tensor:
        """The losses [n] of ``error`` [K, n] on the data alone."""
        alone = (self.hessian.diagonal()[:, None] * error * error).sum(dim=0, dtype=torch.float64)
        return ((losses - self.chance * alone) / (1 - self.chance)).clamp_(min=0)


def prepare(statistics: Statistics, damping: float, chance: float = 0.0) -> Problem:
    """The problem of one operand, made once: weights come in chunks and share operands.

    ``chance``: the part of what the Hessian says of pairs of inputs that is left out. Rows that are few relate inputs
    by chance, and a weight made for that is worse on other rows, even than a rounded one.
    """
    if (damping, chance) not in statistics.prepared:
        statistics.prepared[damping, chance] = _prepare(statistics, damping, chance)
    problem: Problem = statistics.prepared[damping, chance]
    return problem


def _prepare(statistics: Statistics, damping: float, chance: float) -> Problem:
    mean, exponent = math.frexp(float(statistics.hessian.diagonal().mean()))
    unit = 2.0**-exponent  # float32 has no room for the squares of all its numbers
    hessian = torch.as_tensor(statistics.hessian) * unit
    diagonal = hessian.diagonal()
    # An input that was always zero, or as good as that: its weights are rounded to nearest.
    diagonal[diagonal <= mean * _NOTHING] = mean or 1.0
    correction = None
    if statistics.drift is not None:
        factor, info = torch.linalg.cholesky_ex(_damped(hessian, DRIFT_DAMPING * mean))
        if not info:
            correction = torch.cholesky_solve(torch.as_tensor(statistics.drift).T * unit, factor).T.float()
    hessian.mul_(1 - chance)
    diagonal.div_(1 - chance)
    damped = _damped(hessian, damping * mean)
    order = torch.argsort(damped.diagonal(), descending=True, stable=True)
    upper = None
    factor, info = torch.linalg.cholesky_ex(damped[order][:, order])
    if not info:
        inverse = torch.cholesky_inverse(factor)
        factor, info = torch.linalg.cholesky_ex(inverse, upper=True)
        upper = None if info else factor.float().contiguous()
    return Problem(hessian.float(), order, upper, correction, chance)


def _damped(hessian: Tensor, amount: float) -> Tensor:
    damped = hessian.clone()
    damped.diagonal().add_(amount)
    return damped


def wanted_rows(problem: Problem, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows [n, K] whose products with the operand come nearest to those of ``rows`` in the float model."""
    if problem.correction is None:
        return rows
    weights = torch.as_tensor(rows)
    result: NDArray[np.float32] = torch.addmm(weights, weights, problem.correction).numpy(force=True)
    return result


def solve(
    problem: Problem,
    rows: NDArray[np.float32],
    start: QuantizedWeight,
    sweeps: int,
    others: Iterable[QuantizedWeight] = (),
    fit: bool = True,
) -> QuantizedWeight:
    """GPTQ with the scales of ``start`` or, row by row, of the best of ``others``; then sweeps of :func:`descend`.

    ``fit``: whether multipliers are set to the best there are, or stay.

    No row ends worse than it is in ``start``. Every row is worked on near one, at a power of two from where it is,
    as losses are squares.
    """
    unit: NDArray[np.int32] = np.frexp(np.abs(rows).max(axis=1, initial=0))[1]
    wanted = torch.as_tensor(np.ascontiguousarray(np.ldexp(rows, -unit[:, None]).T))
    first = Solution.of(start, unit)
    solution = replace(first, values=gptq(problem, wanted, first.scales, first.weight_format))
    least: Tensor | None = None
    for other in (Solution.of(quantized, unit) for quantized in others):
        least = loss(problem, wanted - solution.weights()) if least is None else least
        candidate = replace(other, values=gptq(problem, wanted, other.scales, other.weight_format))
        reached = loss(problem, wanted - candidate.weights())
        solution.take(reached < least, candidate)
        least = torch.minimum(least, reached)
    gradient = descend(problem, wanted, solution, sweeps, fit)
    reached = (gradient * (wanted - solution.weights())).sum(dim=0, dtype=torch.float64)
    plain = loss(problem, wanted - first.weights())
    solution.take(~(reached <= plain), first)
    squared = np.ldexp(1.0, 2 * unit)
    losses = []
    for sums, taken in ((plain, first), (torch.fmin(reached, plain), solution)):
        on_data = problem.on_data(sums, wanted - taken.weights())
        losses.append(float(squared @ on_data.numpy(force=True)))
    return replace(solution.pack(unit), losses=(losses[0], losses[1]))


@dataclass
class Solution:
    """Rows being rounded: row = values * 2^exponents * multiplier, everything transposed.

    values [K, n] are numbers of the weight format's elements, exponents [K/32, n], multiplier [n].
    """

    values: Tensor
    exponents: Tensor
    multiplier: Tensor
    weight_format: str = "mxfp4"

    @property
    def element(self) -> ElementFormat:
        return WEIGHT_FORMATS[self.weight_format]

    @staticmethod
    def of(quantized: QuantizedWeight, unit: NDArray[np.int32] | int = 0) -> Solution:
        """The rows divided by 2^``unit``, int [n]."""
        fmt = quantized.element
        values = torch.as_tensor(fmt.decode(unpack_codes(quantized.codes, fmt)).T).contiguous()
        exponents = torch.as_tensor(quantized.scales.T.astype(np.int32) - SCALE_BIAS - unit)
        multiplier = torch.as_tensor(quantized.column_scale)
        return Solution(values, exponents, multiplier, quantized.weight_format)

    def take(self, rows: Tensor, other: Solution) -> None:
        """Replaces the rows that ``rows``, bool [n], says."""
        for name in ("values", "exponents", "multiplier"):
            setattr(self, name, torch.where(rows, getattr(other, name), getattr(self, name)))

    @property
    def scales(self) -> Tensor:
        """[K, n]: what each value is multiplied with. (The smallest two scales are one here: torch may flush
        subnormals.)"""
        blocks = torch.exp2(self.exponents.clamp(min=1 - SCALE_BIAS).float()) * self.multiplier
        return blocks[:, None].expand(-1, BLOCK_SIZE, -1).reshape(self.values.shape)

    def weights(self) -> Tensor:
        return self.values * self.scales

    def pack(self, unit: NDArray[np.int32] | int = 0) -> QuantizedWeight:
        """The rows times 2^``unit``, int [n]."""
        # No negative zero.
        values = (self.values.T.contiguous() + 0.0).numpy(force=True)
        codes = _native.round_to_element(values.reshape(-1), self.element.name)[0].reshape(values.shape)
        scales = (self.exponents.numpy(force=True) + SCALE_BIAS + unit).T.astype(np.uint8)
        return QuantizedWeight(
            pack_codes(codes, self.element),
            np.ascontiguousarray(scales),
            self.multiplier.numpy(force=True),
            weight_format=self.weight_format,
        )


def loss(problem: Problem, error: Tensor) -> Tensor:
    """float64 [n]: e H e^T of each row's error, error [K, n]."""
    return ((problem.hessian @ error) * error).sum(dim=0, dtype=torch.float64)


def gptq(problem: Problem, target: Tensor, scales: Tensor, weight_format: str = "mxfp4") -> Tensor:
    """Elements [K, n], each k rounded in turn; what it erred is made good by those still to come."""
    assert problem.upper is not None
    order, upper = problem.order, problem.upper
    rest, scale = target[order], scales[order]
    values = torch.empty_like(rest)
    for panel in _panels(len(rest)):
        values[panel], errors = _native_step(
            _native.gptq_panel, weight_format, upper[panel, panel], rest[panel], scale[panel]
        )
        rest[panel.stop :].addmm_(upper[panel, panel.stop :].T, errors, alpha=-1)
    result = torch.empty_like(values)
    result[order] = values
    return result


def descend(problem: Problem, target: Tensor, solution: Solution, sweeps: int, fit: bool = True) -> Tensor:
    """Improves ``solution`` in place: each k in turn gets the value that is best with all others held.

    No step can increase the loss. Between sweeps the multiplier is set to the best one there is, where ``fit``.
    Returns the gradient at the end, H (target - weights), [K, n].
    """
    hessian, weight_format = problem.hessian, solution.weight_format
    gradient = hessian @ (target - solution.weights())
    wanted = hessian @ target if fit else None
    for _ in range(sweeps):
        if wanted is not None:
            gradient = refit(target, solution, wanted, gradient)
        scales = solution.scales
        for panel in _panels(len(target)):
            here = (hessian[panel, panel], gradient[panel], scales[panel], solution.values[panel])
            gradient[panel], solution.values[panel], moves = _native_step(
                _native.descend_panel, weight_format, *here
            )
            for rest in (slice(0, panel.start), slice(panel.stop, len(target))):
                gradient[rest].addmm_(hessian[rest, panel], moves, alpha=-1)
    return gradient if wanted is None else refit(target, solution, wanted, gradient)


def refit(target: Tensor, solution: Solution, wanted: Tensor, gradient: Tensor) -> Tensor:
    """Sets the multiplier of every row to the one of the least loss (a parabola) -> the gradient after that.

    ``wanted``: H target; ``gradient``: H (target - weights), both [K, n].
    """
    product = wanted - gradient
    square = (product * solution.weights()).sum(dim=0, dtype=torch.float64)
    ratio = (product * target).sum(dim=0, dtype=torch.float64) / square
    usable = (square > 0) & (ratio > 0) & ratio.isfinite()
    before = solution.multiplier
    solution.multiplier = torch.where(usable, (before.double() * ratio).float(), before)
    return torch.addcmul(wanted, product, (solution.multiplier / before)[None], value=-1)


def _panels(k: int) -> Iterator[slice]:
    return (slice(start, min(start + _PANEL, k)) for start in range(0, k, _PANEL))


def _native_step(
    step: Callable[..., tuple[NDArray[np.float32], ...]], weight_format: str, *of: Tensor
) -> Any:
    """The results of a function of the native module on tensors, wherever they are, as tensors."""
    arrays = (tensor.contiguous().numpy(force=True) for tensor in of)
    threads = torch.get_num_threads()
    return [torch.as_tensor(result) for result in step(*arrays, weight_format, threads)]
