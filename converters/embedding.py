"""Embedding tables: Gather on a constant table [V, K], of its own or tied with the output projection.

A tied table is packed once for both and not rotated, as the embedding reads its rows as they are. Where it is
calibrated, that is for the projection, which is the more sensitive of the two by far (docs/accuracy.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from mxort.converters.constants import Constant, NotConstantError, same
from mxort.converters.resolving import resolve

if TYPE_CHECKING:
    from mxort.converters.sites import Selection, Site

LEFT = "an embedding table (convert_embedding)"
"""Why a table stays as it is where nobody asked for more."""


def table_of(node: ir.Node, ir_version: int) -> Constant | None:
    """The constant table [V, K] whose rows a Gather picks; None for any other node."""
    if node.domain != "" or node.op_type != "Gather" or node.attributes.get_int("axis", 0) not in (0, -2):
        return None
    try:
        table = resolve(node.inputs[0], ir_version)
    except NotConstantError:
        return None
    return table if len(table.shape) == 2 else None


def settle(sites: Sequence[Site], heads: Mapping[ir.Node, str], selection: Selection) -> list[Site]:
    """The sites, output projections and tables with their formats, or with the reason why they stay float.

    ``heads``: what tells that a node is an output projection. Those that multiply by an embedding's table get that
    very constant. An embedding whose table a node multiplies with that stays float is left alone: the table would be
    there twice.
    """
    result = {site.node: site for site in sites}
    for site in sites:
        if site.node in heads and not site.skip:
            result[site.node] = _head(site, heads[site.node], selection)
    vocabularies = {site.N for site in result.values() if site.node in heads and not site.skip}
    for site in sites:
        if site.node.op_type != "Gather" or site.skip or site.weight is None:
            continue
        users = [s for s in sites if s.node.op_type != "Gather" and s.weight and same(s.weight, site.weight)]
        if users:
            settled = _tied(site, [result[user.node] for user in users], selection)
        elif weight_format := _format_alone(site, vocabularies, selection):
            settled = [replace(site, weight_format=weight_format)]
        else:
            settled = [replace(site, skip=LEFT)]
        result |= {s.node: s for s in settled}
    return list(result.values())


def _head(site: Site, why: str, selection: Selection) -> Site:
    weight_format = selection.head_format(site.name)
    if weight_format is None:
        return replace(site, skip=f"lm_head: {why} (table_format float)")
    return replace(site, weight_format=weight_format, table=not selection.convert_lm_head)


def _tied(site: Site, users: Sequence[Site], selection: Selection) -> list[Site]:
    """An embedding and the nodes that multiply by its table, which have one format."""
    if kept := next((user for user in users if user.skip), None):
        return [replace(site, skip=f"shares its table with {kept.name!r}, which is left alone")]
    named = (selection.layer_format(s.name) for s in (*users, site))
    weight_format = next(filter(None, named), users[0].weight_format)
    return [replace(s, weight=site.weight, table=True, weight_format=weight_format) for s in (site, *users)]


def _format_alone(site: Site, vocabularies: Collection[int], selection: Selection) -> str | None:
    """What a table that no other node multiplies by becomes; None: it stays float."""
    wanted = selection.convert_embedding or site.N in vocabularies
    return selection.layer_format(site.name) or (selection.table_format if wanted else None)
