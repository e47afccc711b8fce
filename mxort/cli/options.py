"""A flag for each option of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from mxort.conversion.recipe import PRESETS, Recipe

_METAVARS = {int: "N", float: "X", str: "NAME"}


MEASURED = (
    "scale_rule",
    "column_multiplier",
    "include",
    "exclude",
    "op_types",
    "min_elements",
    "table_format",
    "convert_lm_head",
    "convert_embedding",
    "convert_conv",
    "requantize",
)
"""The options that a sensitivity depends on: it is of weights rounded to nearest, in every format."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --preset and one flag per option of Recipe, without defaults: an absent one keeps the preset's."""
    parser.add_argument(
        "--preset", default="weight-only", metavar="NAME", help=f"one of: {', '.join(PRESETS)}"
    )
    add_options(parser, [option.name for option in fields(Recipe)])


def add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """One flag for each of these options of Recipe, without a default."""
    for option in fields(Recipe):
        if option.name not in names:
            continue
        help_text, choices = option.metadata["help"], option.metadata["choices"]
        if choices:
            help_text += f" (one of: {', '.join(map(str, choices))})"
        settings: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, "help": help_text}
        if isinstance(option.default, bool):
            settings |= {"action": argparse.BooleanOptionalAction}
        elif isinstance(option.default, tuple):
            settings |= {"action": "extend", "nargs": "+", "metavar": "NAME" if choices else "PATTERN"}
        else:
            settings |= {
                "type": type(option.default),
                "metavar": _METAVARS[type(option.default)],
            }
        parser.add_argument("--" + option.name.replace("_", "-"), **settings)


def from_arguments(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the flags of :func:`add_arguments` ask for. Raises MxortError for an unknown value."""
    names = {option.name for option in fields(Recipe)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return Recipe.from_preset(getattr(arguments, "preset", "weight-only"), **given)
