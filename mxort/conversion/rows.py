"""Rows of reports for what stays in a model as it is: how many bytes, and for whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import onnx_ir as ir

from mxort.conversion.report import SKIPPED, SiteReport
from mxort.converters.sites import Site, output_name
from mxort.converters.storage import Storage
from mxort.text import few

_WORTH_A_ROW = 0.01
"""Of the file that is left."""

_AT_LEAST_BYTES = 1 << 16
"""Of small models everything else is more than a hundredth."""


def float_too(stored: Storage, site: Site) -> str:
    """A note for a converted site whose weight the file has twice."""
    readers = stored.float_too.get(site.id, ())
    names = [f"{reader.name or output_name(reader)!r}" for reader in readers]
    return f"its weight stays in float too, for {few(names)}" if readers else ""


def kept(stored: Storage, listed: Collection[ir.Node], nbytes: int) -> tuple[SiteReport, ...]:
    """A row for each node that is not ``listed`` and whose kind holds a large part of a model of ``nbytes``.

    And one for what is no constant at all, where that is large.
    """
    least = max(_AT_LEAST_BYTES, int(_WORTH_A_ROW * stored.size(nbytes)))
    groups: dict[tuple[str, str], list[SiteReport]] = defaultdict(list)
    for node, size in stored.read_by.items():
        if node is None:
            groups["", ""].append(_row("", "", "constants that no node reads", size))
        elif node not in listed:
            reason = "reads a constant that is no weight of a product"
            groups[node.domain, node.op_type].append(
                _row(node.name or f"{node.op_type}({output_name(node)})", node.op_type, reason, size)
            )
    rest = nbytes - stored.tensors
    groups["", " "] = [_row("", "", "nodes, names and notes (doc_string, metadata_props)", rest)]
    large = [rows for rows in groups.values() if sum(row.original_bytes for row in rows) >= least]
    return tuple(row for rows in large for row in rows)


def _row(node: str, op_type: str, reason: str, nbytes: int) -> SiteReport:
    return SiteReport(node, op_type, SKIPPED, reason, original_bytes=nbytes)
