"""Tables of the nodes of a model, converted or left alone, for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mxort.console import new_table
from mxort.conversion.gains import Gain
from mxort.converters.attention import FUSED
from mxort.text import format_bytes, format_sqnr

if TYPE_CHECKING:
    from mxort.conversion.report import SiteReport


def every_node(sites: Sequence[SiteReport]) -> Table:
    """The converted nodes, one row each; the column of what calibration gained only where there was some."""
    calibrated = any(site.gain_db is not None for site in sites)
    numbers = ("K", "N", "before", "after", "SQNR dB", *(["gain dB"] if calibrated else []))
    table = new_table("converted", ("node", "op", "format"), numbers, ("note",))
    for s in sites:
        table.add_row(
            escape(s.node),
            s.op_type,
            s.weight_format,
            str(s.K),
            str(s.N),
            format_bytes(s.original_bytes),
            format_bytes(s.converted_bytes),
            format_sqnr(s.sqnr_db),
            *([_gain(s)] if calibrated else []),
            escape(s.note),
        )
    return table


def grouped(sites: Sequence[SiteReport]) -> Table:
    """The converted nodes, those of one operator, format and shape in one row."""
    calibrated = any(site.gain_db is not None for site in sites)
    numbers = ("K", "N", "nodes", "before", "after", "SQNR dB", *(["gain dB"] if calibrated else []))
    table = new_table("converted", ("op", "format"), numbers)
    groups: dict[tuple[str, str, int, int], list[SiteReport]] = defaultdict(list)
    for site in sites:
        groups[site.op_type, site.weight_format, site.K, site.N].append(site)
    for (op_type, weight_format, k, n), group in groups.items():
        table.add_row(
            op_type,
            weight_format,
            str(k),
            str(n),
            str(len(group)),
            format_bytes(sum(site.original_bytes for site in group)),
            format_bytes(sum(site.converted_bytes for site in group)),
            _spread(site.sqnr_db for site in group),
            *([_spread(site.gain_db for site in group)] if calibrated else []),
        )
    return table


def left_alone(rows: Sequence[SiteReport], nbytes: int) -> Table:
    """What stays as it is, by operator and reason, the largest first, with its share of ``nbytes``."""
    table = new_table("left as it is", ("reason", "op"), ("nodes", "bytes", "share"), ("first node",))
    groups: dict[tuple[str, str], list[SiteReport]] = defaultdict(list)
    for row in rows:
        groups[row.reason, row.op_type].append(row)
    sizes = {key: sum(row.original_bytes for row in group) for key, group in groups.items()}
    for key, group in sorted(groups.items(), key=lambda item: (-sizes[item[0]], -len(item[1]))):
        share = f"{sizes[key] / nbytes:.0%}" if nbytes and sizes[key] else ""
        table.add_row(
            escape(key[0]),
            key[1],
            str(len(group)),
            format_bytes(sizes[key]) if sizes[key] else "",
            share,
            escape(group[0].node),
        )
    return table


def fused(by_operator: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """A line for each operator with nodes: how many have a kernel of this library now, and why others have not."""
    for operator, counts in by_operator.items():
        left = ", ".join(
            f"{count} left: {reason}" for reason, count in counts.items() if reason != FUSED and count
        )
        if done := counts.get(FUSED, 0):
            yield f"{done} x {operator} on this library's kernel" + (f"; {left}" if left else "")
        elif left:
            yield f"{operator}: {left}"


def expert_rows(sites: Sequence[SiteReport]) -> Iterator[str]:
    """A line about the calibration data that experts saw, where any did."""
    seen = [rows for site in sites for rows in site.expert_rows]
    if seen:
        yield f"rows of the calibration data that an expert saw: {min(seen)} at least, {median(seen):g} in the median"


def options(gains: Sequence[Gain], nbytes: int) -> Iterator[str]:
    """A line for each: what a smaller file would take."""
    for gain in gains:
        yield f"with {gain.flags()}: about {format_bytes(gain.nbytes)} instead of {format_bytes(nbytes)}"


def _gain(site: SiteReport) -> str:
    return "-" if site.gain_db is None else f"{site.gain_db:.2f}"


def _spread(values: Iterable[float | None]) -> str:
    """Least and most of some decibels."""
    known = [value for value in values if value is not None]
    low, high = format_sqnr(min(known, default=None)), format_sqnr(max(known, default=None))
    return low if low == high else f"{low} to {high}"
