"""The weights of a mixture of experts, quantised expert by expert in a calibration run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort import quantize
from mxort.conversion.combinations import BEST_WITHOUT_DATA
from mxort.conversion.one_weight import rotation_of, settings_of
from mxort.conversion.recipe import Recipe
from mxort.converters.constants import padded_rows
from mxort.converters.sites import Site
from mxort.quantize import ALGORITHMS, QuantizedWeight, Statistics
from mxort.quantize.statistics import MOST_CHANCE


@dataclass
class Stack:
    """What is made of one product's weights: ``add`` is called for each expert in turn.

    An expert that saw so few rows that half of what they relate is chance is rounded to nearest. ``rows``: how many
    each saw; ``rounded``: how many experts.
    """

    site: Site
    recipe: Recipe
    algorithm: str
    rows: list[int] = field(default_factory=list)
    rounded: int = 0
    _parts: list[QuantizedWeight] = field(default_factory=list)
    _signal: float = 0.0
    _noise: float = 0.0

    def add(self, expert: int, array: NDArray[Any], statistics: Statistics) -> QuantizedWeight | None:
        """The rows of the expert, of what the weight's ``array()`` gave; None where they are not finite."""
        site, weight = self.site, self.site.weight
        assert weight is not None
        n = site.N // site.experts
        first = expert * n
        few = statistics.chance >= MOST_CHANCE
        self.rows.append(statistics.rows)
        self.rounded += few

        def read(start: int, stop: int) -> NDArray[np.float32]:
            rows = padded_rows(weight, array, first + start, first + stop, site.K)
            self._signal += float(np.square(rows, dtype=np.float64).sum())
            return rows

        before = self._signal
        made, sqnr = quantize.quantize_weight(
            read,
            n,
            site.K,
            ALGORITHMS[BEST_WITHOUT_DATA if few else self.algorithm].quantize,
            settings_of(site, self.recipe, statistics),
            rotation_of(site, self.recipe, self.algorithm),
        )
        if not made.finite:
            return None
        self._noise += (self._signal - before) / 10 ** (sqnr / 10)
        self._parts.append(made)
        return made

    @property
    def finite(self) -> bool:
        return len(self._parts) == self.site.experts

    def weight(self) -> tuple[QuantizedWeight, float]:
        """(the rows of all experts, their SQNR in dB)."""
        losses = [part.losses for part in self._parts if part.losses is not None]
        sums = (sum(plain for plain, _ in losses), sum(reached for _, reached in losses))
        made = QuantizedWeight(
            np.concatenate([part.codes for part in self._parts]),
            np.concatenate([part.scales for part in self._parts]),
            np.concatenate([part.column_scale for part in self._parts]),
            self._note(),
            self.site.weight_format,
            sums if losses else None,
        )
        return made, 10 * math.log10(self._signal / self._noise) if self._noise else math.inf

    def _note(self) -> str:
        seen = f"an expert saw {min(self.rows)} rows or more, {int(np.median(self.rows))} in the median"
        return f"{seen}; {self.rounded} saw too few and are rounded" if self.rounded else seen
