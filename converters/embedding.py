"""Embedding tables: Gather on a constant table [V, K], of its own or tied with the output projection.

A tied table is packed once for both and not rotated, as the embedding reads its rows as they are. Where there is
calibration data it serves the projection, which is the more sensitive of the two by far (docs/accuracy.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from mxort.converters.constants import Constant, NotConstantError, same
from mxort.converters.resolving import resolve

if TYPE_CHECKING:
    from mxort.converters.sites import Site


def table_of(node: ir.Node, ir_version: int) -> Constant | None:
    """The constant table [V, K] whose rows a Gather picks; None for any other node."""
    if node.domain != "" or node.op_type != "Gather" or node.attributes.get_int("axis", 0) not in (0, -2):
        return None
    try:
        table = resolve(node.inputs[0], ir_version)
    except NotConstantError:
        return None
    return table if len(table.shape) == 2 else None


def tie(sites: Sequence[Site]) -> list[Site]:
    """The sites; those that multiply by an embedding's table are marked and have that very constant.

    An embedding whose table a node multiplies with that stays float is left alone: the table would be there twice.
    """
    embeddings = [(site, site.weight) for site in sites if site.table and not site.skip and site.weight]
    users = [
        (site, embedding, table)
        for embedding, table in embeddings
        for site in sites
        if not site.table and site.weight and same(site.weight, table)
    ]
    left = {
        embedding.node: f"shares its table with {site.name!r}, which is left alone"
        for site, embedding, _ in users
        if site.skip
    }
    tied = {site.node: table for site, embedding, table in users if embedding.node not in left}
    result = []
    for site in sites:
        if site.node in left:
            site = replace(site, skip=left[site.node])
        elif site.node in tied:
            site = replace(site, weight=tied[site.node], table=True, weight_format="mxfp4")
        result.append(site)
    return result
