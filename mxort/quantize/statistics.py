"""What calibration learns of a weight's other operand: second moments of the rows that it is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mxort.formats import hadamard_rotate


@dataclass(frozen=True, eq=False)
class Statistics:
    """Means over the calibration data; x is a row of the operator's operand, float, padded to ceil(K/32)*32.

    ``hessian`` float64 [K, K] is the mean of x x^T, ``mean`` float64 [K] that of x, ``absmax`` float64 [K] the
    largest |x|; ``rows`` counts x. Where x is what the model computes after its earlier layers were
    quantised (or is rounded itself), ``drift`` is the mean of (x' - x) x^T, x' being x in the float model.
    """

    hessian: NDArray[np.float64]
    mean: NDArray[np.float64]
    absmax: NDArray[np.float64]
    rows: int
    drift: NDArray[np.float64] | None = None

    def rotated(self, rotation: int) -> Statistics:
        """The same of x . H. (absmax becomes a bound: what is known is the largest value, not its rows.)"""
        if rotation == 1:
            return self
        bound = self.absmax.reshape(-1, rotation).sum(axis=1) / np.sqrt(rotation)
        return replace(
            self,
            hessian=_rotate_both(self.hessian, rotation),
            mean=_rotate(self.mean, rotation),
            absmax=np.repeat(bound, rotation),
            drift=None if self.drift is None else _rotate_both(self.drift, rotation),
        )


def _rotate(x: NDArray[np.float64], rotation: int) -> NDArray[np.float64]:
    """x . H in float64: statistics are no operand, whose arithmetic would be fixed."""
    h = hadamard_rotate(np.eye(rotation, dtype=np.float32), rotation)
    signs = np.where(h > 0, 1.0, -1.0) / np.sqrt(rotation)
    result: NDArray[np.float64] = (x.reshape(-1, rotation) @ signs).reshape(x.shape)
    return result


def _rotate_both(x: NDArray[np.float64], rotation: int) -> NDArray[np.float64]:
    once = _rotate(x, rotation)
    return np.ascontiguousarray(_rotate(np.ascontiguousarray(once.T), rotation).T)
