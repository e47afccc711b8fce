"""What calibration learns of a weight's other operand: second moments of the rows that it is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.formats import hadamard_rotate


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
    prepared: dict[float, Any] = field(default_factory=dict, init=False, repr=False)
    """What the solver made of this, by its damping; it lives as long as this does."""

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
