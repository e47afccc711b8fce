"""What options that the recipe does not take would make of a model's size, where that is much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import onnx_ir as ir

from mxort.conversion.recipe import Recipe, RecipeOptions
from mxort.converters import sites, storage

_OPTIONS: tuple[RecipeOptions, ...] = (
    {"convert_embedding": True},
    {"table_format": "mxint8"},
    {"table_format": "mxfp4"},
    {"convert_embedding": True, "table_format": "mxfp4"},
)
"""Each is worth a mention where it leaves a smaller file than all before it."""

_WORTH_IT = 0.95
"""Of the size without it."""


@dataclass(frozen=True)
class Gain:
    """``options`` of a Recipe and their values, and about how many bytes the file would then have."""

    options: RecipeOptions
    nbytes: int

    def flags(self) -> str:
        """As on the command line."""
        return " ".join(
            "--" + option.replace("_", "-") + ("" if value is True else f" {value}")
            for option, value in self.options.items()
        )


def find(model: ir.Model, recipe: Recipe, nbytes: int, size: int) -> tuple[Gain, ...]:
    """The gains over the ``size`` that ``recipe`` leaves of a model of ``nbytes``; the model is not changed."""
    gains: list[Gain] = []
    for options in _OPTIONS:
        missing = cast(RecipeOptions, {k: v for k, v in options.items() if getattr(recipe, k) != v})
        if not missing or any(gain.options == missing for gain in gains):
            continue
        more = recipe.with_overrides(**missing)
        leaves = storage.after(model, sites.find(model, more.selection())).size(nbytes)
        if leaves < _WORTH_IT * min([size, *(gain.nbytes for gain in gains)]):
            gains.append(Gain(missing, leaves))
    return tuple(gains)
