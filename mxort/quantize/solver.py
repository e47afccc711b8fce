"""Linear algebra of calibrated quantisation, in torch: rounding rows so that their products err least.

With x the operand and H the mean of x x^T, a row w rounded to q costs (w - q) H (w - q)^T. Everything here works
on many rows at once, each by itself, and keeps them transposed, [K, n], so that one step along K is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mxort.formats import BLOCK_SIZE, E2M1, SCALE_BIAS, SCALE_NAN, pack_nibbles
from mxort.quantize.base import QuantizedWeight
from mxort.quantize.statistics import Statistics

_PANEL = 128
"""Columns after which the rest of the matrix is updated, by one matrix product."""

_MIN_EXPONENT, _MAX_EXPONENT = -SCALE_BIAS, SCALE_NAN - 1 - SCALE_BIAS


def round_e2m1(x: Tensor) -> Tensor:
    """The nearest E2M1 value of each element, ties to the even code, saturating; faster than the general way."""
    magnitude = x.abs()
    # Spacing is 0.5 below 2, 1 below 4, 2 above: an even multiple of it is an even code.
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return (torch.round(magnitude / step) * step).clamp_(max=E2M1.max).copysign_(x)


@dataclass(frozen=True, eq=False)
class Problem:
    """H made positive definite, with what the solvers need of it; ``order`` is the order of rounding.

    ``upper`` is U, U^T U = H^-1 (both in that order); None where H has no inverse even when damped.
    ``target`` maps a weight to the one whose products with x are nearest to the float model's; None: itself.
    """

    hessian: Tensor
    order: Tensor
    upper: Tensor | None
    target: Tensor | None


@lru_cache(maxsize=1)
def prepare(statistics: Statistics, damping: float, drift_damping: float) -> Problem:
    """The problem of one operand; that of the last one is kept, as weights come in chunks and share operands."""
    hessian = torch.from_numpy(statistics.hessian).clone()
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    dead = diagonal <= 0  # an input that was always zero says nothing about its weight
    diagonal[dead] = mean if mean > 0 else 1.0
    target = None
    if statistics.drift is not None and drift_damping < np.inf:
        regular = hessian + drift_damping * mean * torch.eye(len(hessian), dtype=hessian.dtype)
        factor, info = torch.linalg.cholesky_ex(regular)
        if not info:
            drift = torch.from_numpy(statistics.drift)
            target = torch.cholesky_solve(drift.T.contiguous(), factor).T  # drift . regular^-1
            target = target.float().contiguous()
    damped = hessian + damping * mean * torch.eye(len(hessian), dtype=hessian.dtype)
    order = torch.argsort(damped.diagonal(), descending=True, stable=True)
    ordered = damped[order][:, order]
    upper = None
    factor, info = torch.linalg.cholesky_ex(ordered)
    if not info:
        inverse = torch.cholesky_inverse(factor)
        factor, info = torch.linalg.cholesky_ex(inverse, upper=True)
        upper = None if info else factor.float().contiguous()
    return Problem(hessian.float(), order, upper, target)


@dataclass
class Solution:
    """Rows being rounded: row = values * 2^exponents * multiplier, everything transposed.

    values [K, n] are E2M1 numbers, exponents [K/32, n], multiplier [n].
    """

    values: Tensor
    exponents: Tensor
    multiplier: Tensor

    @property
    def scales(self) -> Tensor:
        """[K, n]: what each value is multiplied with."""
        blocks = torch.exp2(self.exponents.float()) * self.multiplier
        return blocks.repeat_interleave(BLOCK_SIZE, dim=0)

    def weights(self) -> Tensor:
        return self.values * self.scales

    def pack(self) -> QuantizedWeight:
        values = self.values.T.contiguous().numpy()
        codes = np.searchsorted(E2M1.magnitudes, np.abs(values)).astype(np.uint8)
        codes |= np.where(np.signbit(values), np.uint8(E2M1.sign_bit), np.uint8(0))
        scales = (self.exponents.T.numpy() + SCALE_BIAS).astype(np.uint8)
        return QuantizedWeight(pack_nibbles(codes), scales, self.multiplier.numpy().astype(np.float32))


def loss(problem: Problem, error: Tensor) -> Tensor:
    """float64 [n]: e H e^T of each row's error, error [K, n]."""
    return ((problem.hessian @ error) * error).sum(dim=0, dtype=torch.float64)


def choose_scales(
    target: Tensor, importance: Tensor, steps: int, candidates: tuple[int, ...] = (0, 1)
) -> Solution:
    """Scales for rounding [K, n] to nearest with the least error, each k weighted by ``importance`` [K].

    Tries ``steps`` multipliers in an octave for each row and, for each block, the scale of rule floor plus each
    of ``candidates``.
    """
    k, n = target.shape
    best_total = torch.full((n,), np.inf)
    best = Solution(torch.zeros_like(target), torch.zeros(k // BLOCK_SIZE, n, dtype=torch.int32), torch.ones(n))
    weight = importance.reshape(-1, BLOCK_SIZE, 1)
    for step in range(steps):
        multiplier = 2.0 ** (step / steps)
        blocks = (target / multiplier).reshape(-1, BLOCK_SIZE, n)
        absmax = blocks.abs().amax(dim=1)
        floor = torch.frexp(absmax)[1] - 1 - E2M1.emax  # of zero: frexp gives exponent 0
        errors = torch.full((k // BLOCK_SIZE, n), np.inf)
        exponents = torch.zeros_like(floor)
        values = torch.zeros_like(blocks)
        for candidate in candidates:
            exponent = (floor + candidate).clamp(_MIN_EXPONENT, _MAX_EXPONENT)
            scale = torch.exp2(exponent.float())[:, None]
            rounded = round_e2m1(blocks / scale)
            error = ((rounded * scale - blocks).square_() * weight).sum(dim=1)
            better = error < errors
            errors = torch.where(better, error, errors)
            exponents = torch.where(better, exponent, exponents)
            values = torch.where(better[:, None], rounded, values)
        total = errors.sum(dim=0) * multiplier**2
        better = total < best_total
        best_total = torch.where(better, total, best_total)
        best.exponents = torch.where(better, exponents, best.exponents)
        best.values = torch.where(better, values.reshape(k, n), best.values)
        best.multiplier = torch.where(better, torch.full((n,), multiplier), best.multiplier)
    return best


def gptq(problem: Problem, target: Tensor, scales: Tensor) -> Tensor:
    """E2M1 values [K, n]: each k is rounded in turn, and what it erred is made good by those still to come."""
    assert problem.upper is not None
    order, upper = problem.order, problem.upper
    rest, scale = target[order], scales[order]
    values = torch.empty_like(rest)
    for start in range(0, len(rest), _PANEL):
        stop = min(start + _PANEL, len(rest))
        panel, errors = rest[start:stop], torch.empty_like(rest[start:stop])
        for i in range(stop - start):
            row = upper[start + i, start:stop]
            values[start + i] = round_e2m1(panel[i] / scale[start + i])
            errors[i] = (panel[i] - values[start + i] * scale[start + i]) / row[i]
            panel[i + 1 :].addr_(row[i + 1 :], errors[i], alpha=-1)
        rest[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    result = torch.empty_like(values)
    result[order] = values
    return result


def descend(problem: Problem, target: Tensor, solution: Solution, sweeps: int) -> None:
    """Improves ``solution`` in place: each k in turn gets the value that is best with all others held.

    No step can increase the loss. Between sweeps the multiplier is set to the best one there is.
    """
    hessian = problem.hessian
    for _ in range(sweeps):
        refit(problem, target, solution)
        scales = solution.scales
        gradient = hessian @ (target - solution.values * scales)
        for start in range(0, len(target), _PANEL):
            stop = min(start + _PANEL, len(target))
            panel, moves = gradient[start:stop], torch.empty_like(gradient[start:stop])
            for i in range(stop - start):
                k = start + i
                row = hessian[k, start:stop]
                old = solution.values[k] * scales[k]
                new = round_e2m1((old + panel[i] / row[i]) / scales[k])
                moves[i] = new * scales[k] - old
                solution.values[k] = new
                panel.addr_(row, moves[i], alpha=-1)
            gradient[:start].addmm_(hessian[:start, start:stop], moves, alpha=-1)
            gradient[stop:].addmm_(hessian[stop:, start:stop], moves, alpha=-1)
    refit(problem, target, solution)


def refit(problem: Problem, target: Tensor, solution: Solution) -> None:
    """Sets the multiplier of every row to the one of the least loss (a parabola)."""
    plain = solution.values * torch.exp2(solution.exponents.float()).repeat_interleave(BLOCK_SIZE, dim=0)
    product = problem.hessian @ plain
    square = (product * plain).sum(dim=0, dtype=torch.float64)
    best = (product * target).sum(dim=0, dtype=torch.float64) / square
    usable = (square > 0) & (best > 0) & best.isfinite()
    solution.multiplier = torch.where(usable, best.float(), solution.multiplier)


def rows_to_torch(rows: NDArray[np.float32]) -> Tensor:
    """[K, n] of rows [n, K]."""
    return torch.from_numpy(np.ascontiguousarray(rows.T))
