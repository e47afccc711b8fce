"""A conversion report as one HTML page that needs only a browser: no network, light or dark."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxort.conversion import tables
from mxort.conversion.report import Report, SiteReport
from mxort.models.report import FolderReport, rows
from mxort.pages import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEGABYTE = 1e6


def render(report: Report) -> str:
    """The whole page. Text from the model (names, reasons) is escaped. Raises MxortError without its libraries."""
    return page.render("report.html.jinja", **_values(report))


def render_folder(report: FolderReport) -> str:
    """The same for a folder: a table of its models, then what :func:`render` says of each that was tried."""
    reports = [model.report for model in report.models if model.report]
    title = f"{Path(report.source).resolve().name} to MXFP4"
    models = [_values(each, f"m{i}-") for i, each in enumerate(reports)]
    return page.render(
        "folder.html.jinja", title=title, report=report, rows=list(rows(report)), models=models
    )


def _values(report: Report, prefix: str = "") -> dict[str, Any]:
    """What conversion.html.jinja shows. ``prefix``: of names in the picture, of which a page may have several."""
    dots = _finite(report)
    return {
        "title": f"{Path(report.source).name or 'model'} to MXFP4",
        "report": report,
        "ratio": report.original_bytes / report.converted_bytes if report.converted_bytes else math.nan,
        "weights": _converted_weight_bytes(report),
        "dots": dots,
        "lowest": min(dots, key=lambda dot: dot[1], default=None),
        "options": list(tables.options(report.gains, report.converted_bytes)),
        "calibrated": any(site.gain_db is not None for site in report.converted),
        "exact": sum(site.sqnr_db == math.inf for site in report.converted),
        "picture": page.picture(lambda figure: _draw(figure, report), 5.0 if dots else 1.8, prefix),
    }


def _finite(report: Report) -> list[tuple[SiteReport, float]]:
    """The converted weights that are drawn, with their SQNR in dB: those that are not exact."""
    values = ((site, site.sqnr_db) for site in report.converted)
    return [(site, sqnr) for site, sqnr in values if sqnr is not None and math.isfinite(sqnr)]


def _converted_weight_bytes(report: Report) -> tuple[int, int]:
    """(before, after) of the converted weights; a weight that several nodes share counts once."""
    before = {site.weight or site.node: site.original_bytes for site in report.converted}
    return sum(before.values()), sum(site.converted_bytes for site in report.converted)


def _draw(figure: Figure, report: Report) -> None:
    dots = [sqnr for _, sqnr in _finite(report)]
    if not dots:
        _draw_sizes(figure.subplots(), report)
        return
    upper, lower = figure.subplots(2, 1, height_ratios=(1, 2))
    _draw_sizes(upper, report)
    lower.plot(range(1, len(dots) + 1), dots, "o", color=page.WEIGHT, markersize=4)
    lower.axhline(sum(dots) / len(dots), linestyle="--", color=page.LINE)
    lower.set(xlabel="converted weights in the graph's order", ylabel="SQNR, dB")
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.grid(axis="y")


def _draw_sizes(axes: Axes, report: Report) -> None:
    """Two bars on one scale, each split in the weights that were converted and everything else."""
    totals = (report.original_bytes, report.converted_bytes)
    weights = [
        min(part, total) / _MEGABYTE
        for part, total in zip(_converted_weight_bytes(report), totals, strict=True)
    ]
    rest = [total / _MEGABYTE - part for part, total in zip(weights, totals, strict=True)]
    names = ["before", "after"]
    axes.barh(names, weights, color=page.WEIGHT, label="weights that were converted")
    axes.barh(names, rest, left=weights, color=page.REST, label="everything else")
    axes.invert_yaxis()
    axes.set(xlabel="file, MB")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
