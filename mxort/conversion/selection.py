"""What a recipe means for one model: the nodes it takes, and what the user should hear about the choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches

import onnx_ir as ir

from mxort.conversion.recipe import Recipe, matches
from mxort.converters import lazy_weights, lm_head, products, sites
from mxort.converters.products import quark
from mxort.converters.sites import Selection, Site
from mxort.text import few


def find(model: ir.Model, recipe: Recipe) -> tuple[list[Site], tuple[str, ...]]:
    """(all sites of the model in graph order, warnings). Operators of the model that are products become MatMul."""
    chosen = recipe.selection()
    if recipe.requantize:
        chosen = _without_what_stays(model, chosen)
    products.express(model, chosen)
    found = sites.find(model, chosen)
    warnings = (
        *_foreign(model),
        *unmatched(recipe, [site.name for site in found]),
        *_formats_of_nothing(recipe, found),
        *_absent(model, recipe, found),
    )
    return found, warnings


def _foreign(model: ir.Model) -> Iterable[str]:
    """A warning where operators stay that only the library of the tool that wrote the model has."""
    names = Counter(n.op_type for n in model.graph.all_nodes() if n.op_type in quark.NAMES)
    for name, count in names.items():
        yield f"{count} x {name} stay, on activations: the model still needs the library that it was made with"


def _without_what_stays(model: ir.Model, selection: Selection) -> Selection:
    """The selection without those quantised weights that would stay float in the end: they would only grow."""
    trial = model.clone()
    products.express(trial, selection)
    reasons = {
        site.name: site.skip
        for site in sites.find(trial, selection)
        if site.skip and lazy_weights.is_quantised(site)
    }
    given = selection.name_reason
    return replace(selection, name_reason=lambda name: given(name) or reasons.get(name))


def unmatched(recipe: Recipe, names: Sequence[str]) -> tuple[str, ...]:
    """A warning for every name pattern of the recipe that is none of ``names``, with the closest of them."""
    return tuple(
        f"{option}: {pattern!r} matches no node with a weight{_closest(pattern, names)}"
        for option, patterns in recipe.patterns().items()
        for pattern in patterns
        if not any(matches(name, pattern) for name in names)
    )


def _closest(pattern: str, names: Iterable[str]) -> str:
    lower = {name.lower(): name for name in names}
    close = get_close_matches(pattern.strip("*?").lower(), lower, n=3, cutoff=0.5)
    return f"; close to it: {few([lower[name] for name in close])}" if close else ""


def _formats_of_nothing(recipe: Recipe, found: Sequence[Site]) -> Iterable[str]:
    """A warning for every entry of layer_formats that matches nodes, none of which gets its format."""
    taken = {recipe.layer_format_of(site.name) for site in found if not site.skip}
    for entry in recipe.layer_formats:
        named = [site for site in found if matches(site.name, entry.rpartition("=")[0])]
        if not named or entry in taken:
            continue
        earlier = {recipe.layer_format_of(site.name) for site in named if not site.skip} - {None}
        why = f"{few(sorted(map(repr, earlier)))} before it match first" if earlier else "all are left alone"
        yield f"layer_formats: {entry!r} changes nothing: of its nodes {why}"


def _absent(model: ir.Model, recipe: Recipe, found: Sequence[Site]) -> Iterable[str]:
    """A warning for every option about a kind of node that the model, or what is converted of it, does not have."""
    weights = [site for site in found if site.weight is not None and site.node.op_type != "Gather"]
    if recipe.convert_lm_head and not lm_head.find(model, weights):
        yield "convert_lm_head: the model has no output projection of a language model"
    if recipe.convert_embedding and not any(site.table for site in found):
        yield "convert_embedding: the model has no embedding table"
    if recipe.table_format != Recipe().table_format and not any(site.table for site in found):
        yield f"table_format {recipe.table_format}: the model has no embedding table or output projection"
    converted = [site for site in found if not site.skip]
    if converted and all(site.node.op_type == "Gather" for site in converted):
        for name in ("activation_format", "accuracy_level", "rotation"):
            if (value := getattr(recipe, name)) != getattr(Recipe(), name):
                yield f"{name} {value}: changes nothing: only embedding tables are converted"
