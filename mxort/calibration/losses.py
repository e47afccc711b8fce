"""How far a model's outputs are from those of the float model: what sensitivities are measured in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError

KL, NOISE = "KL", "noise"
"""Losses: mean divergence of the distributions in an output ``logits``; else noise over signal of the outputs."""

_ROWS_AT_ONCE = 64
_NOTHING = "the float model's outputs have no finite row to compare with"


class Loss(Protocol):
    """The loss of outputs against those of the float model; ``reference`` is called once for each sample first.

    Rows of the reference that are not finite, as at positions of padding, are left out and counted. Otherwise a loss
    is as it comes out: infinite or NaN where the outputs are no longer finite.
    """

    name: str
    left_out: int

    @property
    def count(self) -> int:
        """How many samples have a reference."""

    def reference(self, outputs: Sequence[NDArray[Any]]) -> None: ...

    def of(self, outputs: Sequence[NDArray[Any]], sample: int) -> float: ...


class Divergence:
    """Mean KL(p || q) over the rows of logits: sum p (log p - x) + log sum exp x, x the logits of q.

    A class of p = 0 (its logit may be -inf) adds nothing, whatever q says of it.
    """

    name = KL

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.intp], NDArray[np.float32], float]] = []
        self.left_out = 0

    @property
    def count(self) -> int:
        return len(self._kept)

    def reference(self, outputs: Sequence[NDArray[Any]]) -> None:
        logits = _rows(outputs[0])
        largest = logits.max(axis=-1)  # NaN where there is one; -inf where every class is masked
        usable = np.flatnonzero(np.isfinite(largest))
        self.left_out += len(logits) - len(usable)
        if len(logits) and not len(usable):
            raise MxortError(_NOTHING)
        p, entropy = np.empty((len(usable), logits.shape[-1]), np.float32), 0.0
        for part in _parts(usable):
            x = logits[usable[part]].astype(np.float32)
            log_p = x - _log_sum(x)[:, None]
            np.exp(log_p, out=p[part])
            entropy += _sum_where(p[part], log_p)
        self._kept.append((usable, p, entropy / max(1, len(usable))))

    def of(self, outputs: Sequence[NDArray[Any]], sample: int) -> float:
        logits = _rows(outputs[0])
        usable, p, entropy = self._kept[sample]
        cross = 0.0
        for part in _parts(usable):
            x = logits[usable[part]].astype(np.float32)
            cross += float(_log_sum(x).sum(dtype=np.float64)) - _sum_where(p[part], x)
        loss = entropy + cross / max(1, len(usable))
        return 0.0 if loss < 0 else loss  # by rounding; what is not finite stays so


class Noise:
    """Mean over the outputs of sum (y - reference)^2 / sum reference^2."""

    name = NOISE

    def __init__(self) -> None:
        self._kept: list[list[tuple[NDArray[np.bool_], NDArray[np.float64]]]] = []
        self.left_out = 0

    @property
    def count(self) -> int:
        return len(self._kept)

    def reference(self, outputs: Sequence[NDArray[Any]]) -> None:
        kept = []
        for output in outputs:
            rows = _rows(output.astype(np.float64))
            usable = np.isfinite(rows).all(axis=-1)
            self.left_out += int((~usable).sum())
            kept.append((usable, rows[usable]))
        if any(len(rows) for rows, _ in kept) and not any(len(rows) for _, rows in kept):
            raise MxortError(_NOTHING)
        self._kept.append(kept)

    def of(self, outputs: Sequence[NDArray[Any]], sample: int) -> float:
        ratios = []
        for output, (usable, reference) in zip(outputs, self._kept[sample], strict=True):
            error = _rows(output)[usable].astype(np.float64) - reference
            signal = max(float((reference**2).sum()), np.finfo(float).tiny)
            ratios.append(float((error**2).sum()) / signal)
        return sum(ratios) / len(ratios)


def _rows(output: NDArray[Any]) -> NDArray[Any]:
    return output.reshape(-1, output.shape[-1] if output.ndim else 1)


def _parts(rows: NDArray[Any]) -> Iterator[slice]:
    """A few rows at a time: a vocabulary is large, and each step makes another array of them."""
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(rows), _ROWS_AT_ONCE))


def _sum_where(p: NDArray[np.float32], x: NDArray[np.float32]) -> float:
    """The sum of p x over the classes with p > 0: elsewhere x may be infinite, and is of no interest."""
    np.copyto(x, 0, where=p == 0)
    return float(np.einsum("nv,nv->n", p, x).sum(dtype=np.float64))


def _log_sum(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(sum(exp(x))) of each row; x less its largest, so that nothing overflows."""
    top = x.max(axis=-1)
    result: NDArray[np.float32] = top + np.log(np.exp(x - top[:, None]).sum(axis=-1))
    return result
