"""What the user chooses. Every option is declared once, as a field of ``Recipe``.

Its command-line flag, its JSON key and its line in the report are made from that declaration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypedDict, Unpack

from mxort.converters.functions import ROTATIONS
from mxort.converters.kv_cache import CACHES
from mxort.converters.sites import CONVERTIBLE_OPS, Selection
from mxort.errors import MxortError
from mxort.formats import ACTIVATION_FORMATS, WEIGHT_FORMATS
from mxort.quantize import ALGORITHMS
from mxort.quantize.smoothquant import ALPHAS
from mxort.scales import SCALE_RULES

ACCURACY_LEVELS = (0, 1, 3, 4)
EFFORTS = (1, 2, 3)
AUTO = "auto"
FLOAT = "float"


def _option(default: Any, help_text: str, choices: Iterable[Any] | None = None) -> Any:
    """A field of the recipe. ``choices`` limits the value, or every element where the value is a tuple."""
    metadata = {"help": help_text, "choices": None if choices is None else tuple(choices)}
    return field(default=default, metadata=metadata)


def _check(option: Field[Any], value: Any) -> None:
    expected: type = type(option.default)
    elements: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    if type(value) is not expected or (expected is tuple and not all(isinstance(e, str) for e in elements)):
        raise MxortError(f"{option.name}: expected {_TYPE_NAMES[expected]}, got {value!r}")
    choices = option.metadata["choices"]
    if choices and (bad := [element for element in elements if element not in choices]):
        raise MxortError(_unknown(option.name, bad[0], choices))
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise MxortError(f"{option.name}: expected 0 or more, got {value}")


_TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a name",
    tuple: "a list of names",
}


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(given)
    names = [option.name for option in fields(Recipe)]
    if unknown := next((name for name in options if name not in names), None):
        raise MxortError(_unknown("option", unknown, names))
    return options


def _unknown(what: str, got: Any, expected: Iterable[Any]) -> str:
    names = [str(name) for name in expected]
    close = get_close_matches(str(got), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what}: got {str(got)!r}, expected one of {', '.join(names)}{hint}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) or "-" if isinstance(value, tuple) else str(value)


def matches(name: str, pattern: str) -> bool:
    """Whether a node's name is the pattern's. A name is its own pattern, whatever brackets it has."""
    return name == pattern or fnmatchcase(name, pattern)


class RecipeOptions(TypedDict, total=False):
    """The fields of :class:`Recipe` as keyword arguments, for type checkers; sequences stand for tuples."""

    algorithm: str
    damping: float
    effort: int
    sequential: bool
    smooth_alpha: str
    scale_rule: str
    column_multiplier: bool
    weight_format: str
    layer_formats: Sequence[str]
    table_format: str
    activation_format: str
    accuracy_level: int
    rotation: int
    include: Sequence[str]
    exclude: Sequence[str]
    op_types: Sequence[str]
    min_elements: int
    convert_lm_head: bool
    convert_embedding: bool
    convert_conv: bool
    requantize: bool
    fuse: bool
    kv_cache: str
    strict: bool


@dataclass(frozen=True)
class Recipe:
    """The options of a conversion. Raises MxortError for a value that is unknown or out of range.

    >>> from mxort import Recipe
    >>> recipe = Recipe.from_preset("w4a8", exclude=["*attention*"])
    >>> recipe.activation_format, recipe.exclude
    ('mxfp8_e4m3', ('*attention*',))
    >>> Recipe(weight_format="mxfp5")
    Traceback (most recent call last):
    mxort.errors.MxortError: unknown weight_format: got 'mxfp5', expected one of mxfp4, mxfp6_e2m3, mxfp6_e3m2, \
mxfp8_e4m3, mxint8; did you mean 'mxfp4'?
    """

    algorithm: str = _option(
        AUTO,
        "how weights are rounded (auto: what measured best, with calibration data or without)",
        (AUTO, *ALGORITHMS),
    )
    damping: float = _option(
        0.01, "added to the diagonal of a layer's Hessian, in units of its mean (of the gptq algorithms)"
    )
    effort: int = _option(
        1,
        "how long the gptq algorithms search for the best rounding: 2 tries eight multipliers a column, 3 sixteen",
        EFFORTS,
    )
    sequential: bool = _option(
        True, "calibrate a layer on what the already converted layers before it compute"
    )
    smooth_alpha: str = _option(
        AUTO,
        "how much of an operand's unevenness smoothing moves to the weight (auto: what is best for each layer)",
        (AUTO, *map(str, ALPHAS)),
    )
    scale_rule: str = _option("mse", "how the scale of a block of weights is chosen", SCALE_RULES)
    column_multiplier: bool = _option(
        True, "search a float32 multiplier for every output column: eight times the time, more accurate"
    )
    weight_format: str = _option("mxfp4", "format of converted weights", WEIGHT_FORMATS)
    layer_formats: tuple[str, ...] = _option(
        (), "PATTERN=FORMAT: another weight format for the nodes of that name (* ?); the first that matches"
    )
    table_format: str = _option(
        "mxint8",
        "format of a language model's output projection and embedding table; float leaves them as they are",
        (*WEIGHT_FORMATS, FLOAT),
    )
    activation_format: str = _option(
        "none", "format to which the input of a converted node is rounded at run time", ACTIVATION_FORMATS
    )
    accuracy_level: int = _option(
        0,
        "accuracy of the kernels where activations are not rounded: 1 fp32, 3 bf16, 4 int8; "
        "0: 4, and 3 for weights that are rounded by less than that",
        ACCURACY_LEVELS,
    )
    rotation: int = _option(
        1, "size of the Hadamard rotation along K (1: the algorithm's own; only mr-gptq has one)", ROTATIONS
    )
    include: tuple[str, ...] = _option(
        (), "convert only nodes whose name matches one of these patterns (* ?)"
    )
    exclude: tuple[str, ...] = _option((), "leave alone nodes whose name matches one of these patterns (* ?)")
    op_types: tuple[str, ...] = _option(CONVERTIBLE_OPS, "operators to convert", CONVERTIBLE_OPS)
    min_elements: int = _option(1024, "leave alone weights with fewer elements")
    convert_lm_head: bool = _option(
        False, "convert the output projection of a language model as any other weight, to weight_format"
    )
    convert_embedding: bool = _option(
        False, "convert the embedding tables of models without an output projection too, to table_format"
    )
    convert_conv: bool = _option(
        False, "convert the convolutions too that are faster as they are: for the smallest file"
    )
    requantize: bool = _option(
        False, "convert weights that are quantised already too (MatMulNBits, int8, int4): they lose twice"
    )
    fuse: bool = _option(
        True,
        "give attention this library's kernel, and products the activation that follows them; put together what "
        "exporters write in single steps (norms, rotations, attention)",
    )
    kv_cache: str = _option(
        FLOAT,
        "format of a decoder's cache of keys and values: its inputs and outputs change",
        (FLOAT, *CACHES),
    )
    strict: bool = _option(
        False, "fail at a NaN or an infinity in a weight, instead of leaving the node alone"
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if (
                isinstance(option.default, tuple)
                and not isinstance(value, str)
                and isinstance(value, Iterable)
            ):
                value = tuple(value)
                object.__setattr__(self, option.name, value)
            elif isinstance(option.default, float) and type(value) is int:
                value = float(value)
                object.__setattr__(self, option.name, value)
            _check(option, value)
        for entry in self.layer_formats:
            pattern, _, weight_format = entry.rpartition("=")
            if not pattern or weight_format not in WEIGHT_FORMATS:
                known = ", ".join(WEIGHT_FORMATS)
                raise MxortError(
                    f"layer_formats: got {entry!r}, expected PATTERN=FORMAT, FORMAT one of {known}"
                )

    @staticmethod
    def from_preset(name: str, **overrides: Unpack[RecipeOptions]) -> Recipe:
        """The named preset with some options changed. Raises MxortError for what is unknown."""
        if name not in PRESETS:
            raise MxortError(_unknown("preset", name, PRESETS))
        return replace(PRESETS[name], **_known(overrides))

    def with_overrides(self, **overrides: Unpack[RecipeOptions]) -> Recipe:
        """This recipe with some options changed. Raises MxortError for an unknown option or value."""
        return replace(self, **_known(overrides))

    def skip_reason(self, node: str) -> str | None:
        """Why the name patterns leave the node called ``node`` alone; None where they do not."""
        if pattern := next((p for p in self.exclude if matches(node, p)), None):
            return f"excluded by pattern {pattern!r}"
        if self.include and not any(matches(node, p) for p in self.include):
            return "matches no include pattern"
        return None

    def layer_format_of(self, node: str) -> str | None:
        """The first entry of ``layer_formats`` for the node called ``node``; None where there is none."""
        return next((e for e in self.layer_formats if matches(node, e.rpartition("=")[0])), None)

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """The name patterns by the option that they were given to."""
        formats = tuple(entry.rpartition("=")[0] for entry in self.layer_formats)
        return {"include": self.include, "exclude": self.exclude, "layer_formats": formats}

    def selection(self) -> Selection:
        """Which nodes of a graph to convert, and to what."""
        return Selection(
            self.op_types,
            self.min_elements,
            self.convert_lm_head,
            self.convert_embedding,
            self.skip_reason,
            lambda node: (self.layer_format_of(node) or "").rpartition("=")[2] or None,
            self.weight_format,
            None if self.table_format == FLOAT else self.table_format,
            self.convert_conv,
            self.requantize,
        )

    def to_dict(self) -> dict[str, Any]:
        """All options by name, as JSON types."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @staticmethod
    def from_dict(options: dict[str, Any]) -> Recipe:
        """Inverse of :meth:`to_dict`; options that are absent keep their default. Raises MxortError."""
        return Recipe(**_known(options))

    def to_json(self) -> str:
        """The recipe as one line of JSON."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Inverse of :meth:`to_json`. Raises MxortError for anything that is not a recipe."""
        try:
            options = json.loads(text)
        except json.JSONDecodeError as error:
            raise MxortError(f"recipe: not JSON: {error}") from None
        if not isinstance(options, dict):
            raise MxortError(f"recipe: expected a JSON object, got {type(options).__name__}")
        return Recipe.from_dict(options)

    def describe(self) -> list[tuple[str, str, str]]:
        """(option, value, help) of every option, for reports."""
        return [(o.name, _text(getattr(self, o.name)), o.metadata["help"]) for o in fields(self)]


PRESETS: dict[str, Recipe] = {
    "weight-only": Recipe(),
    "mi355x": Recipe(activation_format="mxfp6_e2m3"),
    "w4a8": Recipe(activation_format="mxfp8_e4m3"),
    "w4a4": Recipe(activation_format="mxfp4"),
    "w8": Recipe(weight_format="mxint8", convert_embedding=True),
    "portable": Recipe(algorithm="gptq", column_multiplier=False, table_format=FLOAT),
}
"""Named recipes. mi355x: FP6 activations run at the full FP4 matrix rate there, FP8 at half of it. w8: for encoders of
sentences, whose similarities show what 4 bits cost. portable: what other formats can say (`mxort export`), calibrated;
without data with algorithm="rtn"."""
