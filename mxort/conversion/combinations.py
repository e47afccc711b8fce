"""What options mean together. Of an option that would change nothing the user hears, before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from mxort.conversion.recipe import AUTO, FLOAT, Recipe
from mxort.errors import MxortError
from mxort.quantize import ALGORITHMS, Algorithm

BEST_WITHOUT_DATA = "rtn"
BEST_WITH_DATA = "mr-gptq"
"""What ``auto`` means: the algorithms that measured best (docs/accuracy.md)."""


@dataclass(frozen=True)
class Situation:
    """A recipe, and what comes with it: the algorithm that it means, and whether there is calibration data."""

    recipe: Recipe
    algorithm: str
    calibrated: bool


@dataclass(frozen=True)
class Need:
    """What an option that is not at its default needs: where it is not ``met`` the option would change nothing."""

    met: Callable[[Situation], bool]
    expected: str
    got: Callable[[Situation], str]


def _algorithm(has: Callable[[Algorithm], bool]) -> Need:
    names = ", ".join(name for name, algorithm in ALGORITHMS.items() if has(algorithm))
    return Need(
        lambda s: has(ALGORITHMS[s.algorithm]),
        f"one of the algorithms {names}",
        lambda s: f"algorithm {s.algorithm}" + ("" if s.calibrated else " (there is no calibration data)"),
    )


_ALWAYS = Need(lambda s: True, "", lambda s: "")
_SOLVER = _algorithm(lambda algorithm: algorithm.hessian)

NEEDS: dict[str, Need] = {
    "algorithm": _ALWAYS,  # its data: see algorithm_for
    "damping": _SOLVER,
    "effort": _SOLVER,
    "sequential": Need(lambda s: s.calibrated, "calibration data", lambda s: "none"),
    "smooth_alpha": _algorithm(lambda algorithm: algorithm.smooth),
    "scale_rule": _ALWAYS,
    "column_multiplier": _ALWAYS,
    "weight_format": _ALWAYS,
    "layer_formats": _ALWAYS,
    "table_format": _ALWAYS,  # a model that has no table: see selection
    "activation_format": _ALWAYS,
    "accuracy_level": Need(
        lambda s: s.recipe.activation_format == "none",
        "activation_format none",
        lambda s: f"activation_format {s.recipe.activation_format}",
    ),
    "rotation": _ALWAYS,  # a length that it does not fit is in the node's note
    "include": _ALWAYS,
    "exclude": _ALWAYS,
    "op_types": Need(
        lambda s: bool(s.recipe.op_types) or s.recipe.convert_embedding,
        "an operator, or convert_embedding",
        lambda s: "neither",
    ),
    "min_elements": _ALWAYS,
    "convert_lm_head": _ALWAYS,  # a model that has none: see selection
    "convert_embedding": Need(
        lambda s: s.recipe.table_format != FLOAT, "another table_format", lambda s: "table_format float"
    ),
    "convert_conv": Need(lambda s: "Conv" in s.recipe.op_types, "Conv among op_types", lambda s: "none"),
    "requantize": _ALWAYS,
    "fuse": _ALWAYS,
    "kv_cache": Need(lambda s: s.recipe.fuse, "fuse", lambda s: "no fuse"),
    "strict": _ALWAYS,
}
"""Every option of a recipe -> what it needs. What only a model can tell is in :mod:`mxort.conversion.selection`."""


def check(recipe: Recipe, calibrated: bool) -> str:
    """The algorithm that the recipe means. Raises MxortError for options that mean nothing together."""
    situation = Situation(recipe, algorithm_for(recipe, calibrated), calibrated)
    for option in fields(recipe):
        value, need = getattr(recipe, option.name), NEEDS[option.name]
        if value != option.default and not need.met(situation):
            shown = value if value != () else "nothing"
            raise MxortError(
                f"{option.name} {shown}: would change nothing: got {need.got(situation)}, expected {need.expected}"
            )
    return situation.algorithm


def algorithm_for(recipe: Recipe, calibrated: bool) -> str:
    """The algorithm that the recipe means. Raises MxortError where it needs data and has none, or the reverse."""
    name = recipe.algorithm
    if name == AUTO:
        return BEST_WITH_DATA if calibrated else BEST_WITHOUT_DATA
    if ALGORITHMS[name].calibrated and not calibrated:
        raise MxortError(f"algorithm {name}: needs calibration data, got none")
    if calibrated and not ALGORITHMS[name].calibrated:
        raise MxortError(f"algorithm {name}: makes nothing of calibration data, got some")
    return name
