"""What calibration learns of a weight's other operand: second moments of the rows that it is multiplied with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.formats import hadamard_rotate

CHANCE, MOST_CHANCE = 0.2, 0.5
"""What relates inputs in few rows is chance in part: this part where there are as many rows as inputs, and at most."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Means over the calibration data; x is a row of the operator's operand, float, padded to ceil(K/32)*32.

    ``hessian`` float64 [K, K] is the mean of x x^T; ``rows`` counts x, without ``left_out`` more that had a NaN or an
    infinity. Where x is what the model computes after its earlier layers were quantised (or is rounded itself),
    ``drift`` is the mean of (x' - x) x^T, x' being x in the float model.
    """

    hessian: NDArray[np.float64]
    rows: int
    drift: NDArray[np.float64] | None = None
    left_out: int = 0
    prepared: dict[tuple[float, float], Any] = field(default_factory=dict, init=False, repr=False)
    """What the solver made of this, by its damping and chance; it lives as long as this does."""

    @property
    def chance(self) -> float:
        """The part of what ``hessian`` says of pairs of inputs that a solver should put down to chance, 0..1.

        It goes with 1 / sqrt(rows).
        """
        return min(MOST_CHANCE, CHANCE * math.sqrt(len(self.hessian) / max(1, self.rows)))

    def rotated(self, rotation: int) -> Statistics:
        """The same of x . H."""
        if rotation == 1:
            return self
        return replace(
            self,
            hessian=_rotate_both(self.hessian, rotation),
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
