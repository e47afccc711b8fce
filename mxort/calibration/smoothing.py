"""Smoothing the operands of a model during calibration: which can be, by how much, and folding it into the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.calibration.operator import Operator
from mxort.conversion.recipe import AUTO, Recipe
from mxort.converters import folding, lazy_weights, stages
from mxort.converters.sites import Site
from mxort.formats import BLOCK_SIZE, blocks_of
from mxort.quantize import Settings, smoothquant


class Smoother:
    """Called by :mod:`mxort.calibration.calibrate` for each operand; changes the model when told to :meth:`fold`.

    ``divisors`` has for each smoothed site what its operand is divided by, float32 [K]; ``output_divisors``
    for each site that takes over such a division what its output columns are, float32 [N]; ``notes`` what to tell
    of each site.
    """

    def __init__(
        self, model: ir.Model, sites: Sequence[Site], recipe: Recipe, operator: Callable[[Site], Operator]
    ) -> None:
        self._model, self._recipe, self._operator = model, recipe, operator
        self._users = Counter(site.weight.identity for site in sites if site.weight and not site.skip)
        self._converted: dict[ir.Node, Site] = {}
        self._folds: list[tuple[folding.Fold, NDArray[np.float32]]] = []
        self.divisors: dict[ir.Node, NDArray[np.float32]] = {}
        self.output_divisors: dict[ir.Node, NDArray[np.float32]] = {}
        self.notes: dict[ir.Node, str] = {}

    def converted(self, site: Site) -> None:
        """The site becomes the operator: what comes after it may be folded into its output columns."""
        self._converted[site.node] = site

    def __call__(
        self, sites: Sequence[Site], rows: NDArray[np.float32], absmax: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """Decides about the operand that ``sites`` share; see :data:`mxort.calibration.calibrate.Smooth`."""
        if any(lazy_weights.is_packed(site) for site in sites):
            self._not(sites, "codes of the checkpoint read its input")
            return None
        try:
            fold = folding.fold_of(self._model, sites, self._converted)
        except folding.NotFoldableError as reason:
            self._not(sites, f"its input {reason}")
            return None
        group = Counter(site.weight.identity for site in sites if site.weight)
        if any(site.table for site in sites) or any(self._users[key] > n for key, n in group.items()):
            self._not(sites, "its weight is used elsewhere")
            return None
        smoothing = self._choose(sites, rows, absmax)
        if smoothing is None:
            self._not(sites, "no alpha is better")
            return None
        divisor = smoothing.scale[: sites[0].K]
        gain = 10 * np.log10(smoothing.error_before / smoothing.error_after)
        for site in sites:
            self.divisors[site.node] = divisor
            self.notes[site.node] = f"smoothed with alpha {smoothing.alpha}, {gain:+.1f} dB"
        if fold.site is not None:
            self.output_divisors[fold.site.node] = divisor
        self._folds.append((fold, divisor))
        return divisor

    def _not(self, sites: Sequence[Site], why: str) -> None:
        self.notes |= {site.node: f"not smoothed: {why}" for site in sites}

    def _choose(
        self, sites: Sequence[Site], rows: NDArray[np.float32], absmax: NDArray[np.float32]
    ) -> smoothquant.Smoothing | None:
        recipe, operator, k = self._recipe, self._operator(sites[0]), sites[0].K
        tail = blocks_of(k) * BLOCK_SIZE - k
        return smoothquant.choose(
            np.pad(rows, ((0, 0), (0, tail))),
            np.pad(absmax, (0, tail)),
            smoothquant.Layers(
                [stages.float_weight(site) for site in sites],
                operator.rotation,
                operator.activation_format,
                [site.weight_format for site in sites],
            ),
            Settings(recipe.scale_rule, recipe.column_multiplier),
            None if recipe.smooth_alpha == AUTO else float(recipe.smooth_alpha),
        )

    def fold(self) -> None:
        """Divides the constants of the model, once calibration has no more use of them as they were."""
        for fold, divisor in self._folds:
            folding.divide(self._model, fold, divisor)
