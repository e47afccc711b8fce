"""One site's weight, read by rows and quantised as the recipe says. Nothing is stored here."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mxort import quantize
from mxort.conversion.recipe import Recipe
from mxort.converters import functions, lazy_weights
from mxort.converters.constants import padded_rows
from mxort.converters.sites import Site
from mxort.formats import BLOCK_SIZE, blocks_of
from mxort.quantize import ALGORITHMS, QuantizedWeight, Settings, Statistics

LEVEL_4_DB = 50.0
"""A weight that is nearer to the original than that is held exactly, or all but: 8 bits leave 45 dB of one that is not.
It would lose by what level 4 does to activations, of which it leaves 43 dB or more (docs/format.md)."""


KEPT = "codes and scales of the checkpoint"
"""The note of a weight that was MXFP4 already."""


def wanted_rotation(recipe: Recipe, algorithm: str) -> int:
    """The rotation that the recipe asks for, or the algorithm where the recipe does not."""
    return recipe.rotation if recipe.rotation > 1 else ALGORITHMS[algorithm].rotation


def rotation_of(site: Site, recipe: Recipe, algorithm: str) -> int:
    """The rotation that the site gets: the largest up to the wanted one that fits its K.

    None for a table, and for codes that are kept.
    """
    unrotated = site.table or lazy_weights.is_packed(site)
    wanted = 1 if unrotated else wanted_rotation(recipe, algorithm)
    return quantize.fitting_rotation(site.rotation_width or site.K, wanted, functions.ROTATIONS)


def operand_of(site: Site, recipe: Recipe, sqnr_db: float) -> tuple[str, int]:
    """(activation_format, accuracy_level) of the operator that takes the site's place, of its weight's SQNR."""
    wanted = lazy_weights.activation_format(site) or recipe.activation_format
    if wanted != "none" and not site.wide_table:
        return wanted, 0  # which has no level
    return "none", level_of(recipe, sqnr_db)


def level_of(recipe: Recipe, sqnr_db: float) -> int:
    """The accuracy level of a product with activations in float, of its weight's SQNR."""
    return recipe.accuracy_level or (4 if sqnr_db < LEVEL_4_DB else 3)


def quantize_site(
    site: Site,
    recipe: Recipe,
    algorithm: str,
    statistics: Statistics | None,
    divisor: NDArray[np.float32] | None,
) -> tuple[QuantizedWeight, float]:
    """(the weight W^T [N, K], its SQNR in dB). ``divisor`` float32 [K]: what its operand is divided by before."""
    weight = site.weight
    assert weight is not None
    if kept := lazy_weights.packed(site):
        return QuantizedWeight(*kept, np.ones(site.N, np.float32), KEPT), math.inf
    width = blocks_of(site.K) * BLOCK_SIZE
    array = weight.array()

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows = padded_rows(weight, array, start, stop, width)
        if divisor is not None:
            rows[:, : site.K] *= divisor
        return rows

    settings = settings_of(site, recipe, statistics)
    rotation = rotation_of(site, recipe, algorithm)
    return quantize.quantize_weight(read, site.N, site.K, ALGORITHMS[algorithm].quantize, settings, rotation)


def settings_of(site: Site, recipe: Recipe, statistics: Statistics | None) -> Settings:
    """What an algorithm is told about the site's weight."""
    return Settings(
        recipe.scale_rule,
        recipe.column_multiplier,
        statistics,
        recipe.damping,
        site.weight_format,
        recipe.effort,
    )
