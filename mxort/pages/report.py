"""A conversion report as one HTML page that needs only a browser: no network, no framework, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path

from mxort.conversion.report import CONVERTED, Report, SiteReport
from mxort.text import format_bytes

CHART_WIDTH = 960
DOTS_HEIGHT = 280
_BAR_HEIGHT = 44
_BAR_GAP = 18
LABEL_WIDTH = 84
CHARACTER_WIDTH = 7.5  # of the chart font, roughly: a label goes into a bar only where it surely fits


def render(report: Report) -> str:
    """The whole page. Text from the model (names, reasons) is escaped."""
    title = f"{Path(report.source).name or 'model'} to MXFP4"
    body = (
        _header(report, title),
        _tiles(report),
        section("Size", "File size with external data.", _size_chart(report)),
        section("Weight accuracy by layer", _sqnr_caption(report), _sqnr_chart(report)),
        _warnings(report),
        section("Nodes", "Every node that multiplies by a weight. Click a heading to sort.", _sites(report)),
        section("Recipe", "", _recipe(report)),
        section("Provenance", "", _provenance(report)),
    )
    return page(title, body)


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page of its own of sections of HTML, those that are empty left out."""
    return _PAGE.format(title=escape(title), css=_CSS, js=_JS, body="\n".join(filter(None, sections)))


def _header(report: Report, title: str) -> str:
    output = f" → <code>{escape(report.output)}</code>" if report.output else ""
    return f"<header><h1>{escape(title)}</h1><p><code>{escape(report.source)}</code>{output}</p></header>"


def _tiles(report: Report) -> str:
    ratio = report.original_bytes / report.converted_bytes if report.converted_bytes else math.nan
    sqnr = report.mean_sqnr_db
    tiles = (
        (f"{ratio:.2f}x", "smaller" if ratio >= 1 else "the size"),
        (f"{len(report.converted)} of {len(report.sites)}", "nodes converted"),
        ("-" if sqnr is None else f"{sqnr:.1f} dB", "mean weight SQNR"),
        (f"{report.seconds:.1f} s", "to convert"),
        (format_bytes(report.peak_rss_bytes), "peak memory"),
    )
    cells = (f"<li><strong>{escape(value)}</strong><span>{what}</span></li>" for value, what in tiles)
    return f'<ul class="tiles">{"".join(cells)}</ul>'


def section(heading: str, caption: str, content: str) -> str:
    """A part of the page with its heading and a line of explanation; "" where it has no content."""
    if not content:
        return ""
    lead = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f"<section><h2>{escape(heading)}</h2>{lead}{content}</section>"


def _size_chart(report: Report) -> str:
    """Two bars on one scale, each split in the weights that were converted and everything else."""
    weights = _converted_weight_bytes(report)
    rows = []
    scale = (CHART_WIDTH - LABEL_WIDTH) / max(report.original_bytes, report.converted_bytes, 1)
    for index, (label, total, part) in enumerate(
        (("before", report.original_bytes, weights[0]), ("after", report.converted_bytes, weights[1]))
    ):
        y = index * (_BAR_HEIGHT + _BAR_GAP)
        part = min(part, total)
        rows.append(f'<text class="label" x="0" y="{y + _BAR_HEIGHT / 2 + 5:g}">{label}</text>')
        segments = (("weight", "converted weights", part), ("rest", "everything else", total - part))
        x = float(LABEL_WIDTH)
        for css, what, count in segments:
            rows.append(_segment(css, x, y, count * scale, f"{format_bytes(count)} {what}"))
            x += count * scale
    height = 2 * _BAR_HEIGHT + _BAR_GAP
    description = (
        f"Before {format_bytes(report.original_bytes)}, of which {format_bytes(weights[0])} are weights that "
        f"were converted; after {format_bytes(report.converted_bytes)}, of which {format_bytes(weights[1])}."
    )
    legend = (
        '<ul class="legend"><li><i class="weight"></i>weights that were converted</li>'
        '<li><i class="rest"></i>everything else</li></ul>'
    )
    totals = (
        f'<p class="totals">{format_bytes(report.original_bytes)} → '
        f"<strong>{format_bytes(report.converted_bytes)}</strong></p>"
    )
    return totals + svg("size", "File size before and after", description, height, rows) + legend


def _converted_weight_bytes(report: Report) -> tuple[int, int]:
    """(before, after) of the converted weights; a weight that several nodes share counts once."""
    before = {site.weight or site.node: site.original_bytes for site in report.converted}
    return sum(before.values()), sum(site.converted_bytes for site in report.converted)


def _segment(css: str, x: float, y: float, width: float, label: str) -> str:
    if width <= 0:
        return ""
    text = ""
    if width >= 24 + CHARACTER_WIDTH * len(label):
        text = (
            f'<text class="on-{css}" x="{x + 12:.1f}" y="{y + _BAR_HEIGHT / 2 + 5:g}">{escape(label)}</text>'
        )
    bar = f'<rect class="{css}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR_HEIGHT}" rx="3"/>'
    return f"<g><title>{escape(label)}</title>{bar}{text}</g>"


def _sqnr_chart(report: Report) -> str:
    """One dot per converted weight in graph order. The axis spans the values: their spread is the news."""
    points = [(site, site.sqnr_db) for site in report.converted if site.sqnr_db is not None]
    points = [(site, value) for site, value in points if math.isfinite(value)]
    if not points:
        return ""
    ticks = nice_ticks(min(v for _, v in points), max(v for _, v in points))
    top, bottom, left = 12, DOTS_HEIGHT - 34, LABEL_WIDTH
    low, high = ticks[0], ticks[-1]

    def y_of(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    rows = []
    for tick in ticks:
        y = y_of(tick)
        rows.append(f'<line class="grid" x1="{left}" x2="{CHART_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    step = (CHART_WIDTH - left) / len(points)
    radius = max(2.5, min(5.0, step / 2.4))
    for index, (site, value) in enumerate(points):
        x = left + (index + 0.5) * step
        label = f"{site.node}: {value:.2f} dB (K {site.K}, N {site.N})"
        dot = f'<circle class="dot" cx="{x:.1f}" cy="{y_of(value):.1f}" r="{radius:.1f}">'
        rows.append(f"{dot}<title>{escape(label)}</title></circle>")
    rows.append(f'<text class="tick" x="0" y="{top + 4}">dB</text>')
    mean = sum(value for _, value in points) / len(points)
    rows.append(
        f'<line class="mean" x1="{left}" x2="{CHART_WIDTH}" y1="{y_of(mean):.1f}" y2="{y_of(mean):.1f}"/>'
    )
    rows.append(f'<text class="tick" x="{left}" y="{DOTS_HEIGHT - 8}">first node</text>')
    rows.append(
        f'<text class="tick" x="{CHART_WIDTH}" y="{DOTS_HEIGHT - 8}" text-anchor="end">last node</text>'
    )
    worst, value = min(points, key=lambda point: point[1])
    description = (
        f"{len(points)} weights, mean {mean:.2f} dB, lowest {value:.2f} dB at {worst.node}. "
        "The table below has every number."
    )
    return svg(
        "sqnr", "Weight SQNR in dB of each converted node, in graph order", description, DOTS_HEIGHT, rows
    )


def _sqnr_caption(report: Report) -> str:
    exact = sum(site.sqnr_db == math.inf for site in report.converted)
    note = f" {exact} weights are exact and not drawn." if exact else ""
    return (
        "Signal to quantisation noise of each converted weight in dB, higher is better; "
        f"the dashed line is the mean. Point at a dot for its node.{note}"
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers, ascending, whose first and last enclose [low, high]; at least two."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high), 1.0))
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * count >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def svg(name: str, title: str, description: str, height: float, rows: Iterable[str]) -> str:
    """A picture as wide as the page of ``rows`` of SVG; ``name`` is unique on the page."""
    labels = f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
    return (
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {CHART_WIDTH} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg">{labels}{"".join(rows)}</svg>'
    )


def _warnings(report: Report) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in report.warnings)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>' if items else ""


_COLUMNS = ("node", "operator", "format", "status", "K", "N", "before", "after", "SQNR dB", "reason or note")
_NUMERIC = {"K", "N", "before", "after", "SQNR dB"}


def _sites(report: Report) -> str:
    heads = "".join(
        f'<th scope="col" class="{"number" if name in _NUMERIC else "text"}" aria-sort="none">'
        f'<button type="button">{name}</button></th>'
        for name in _COLUMNS
    )
    rows = "".join(_site_row(site) for site in report.sites)
    table = f'<table class="sites"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll" role="region" aria-label="Nodes" tabindex="0">{table}</div>'


def _site_row(site: SiteReport) -> str:
    status = f'<td><span class="status {escape(site.status)}">{escape(site.status)}</span></td>'
    is_converted = site.status == CONVERTED
    names = "".join(f"<td>{escape(text)}</td>" for text in (site.op_type, site.weight_format or "-"))
    numbers = (
        (site.K, str(site.K) if site.K else "-"),
        (site.N, str(site.N) if site.N else "-"),
        (site.original_bytes, format_bytes(site.original_bytes) if site.original_bytes else "-"),
        (site.converted_bytes, _after(site) if is_converted else "-"),
        (
            -1 if site.sqnr_db is None else site.sqnr_db,
            "-" if site.sqnr_db is None else _decibels(site.sqnr_db),
        ),
    )
    cells = "".join(f'<td class="number" data-value="{value}">{text}</td>' for value, text in numbers)
    return (
        f'<tr><td class="name">{escape(site.node)}</td>{names}{status}{cells}'
        f"<td>{escape(site.note if is_converted else site.reason)}</td></tr>"
    )


def _after(site: SiteReport) -> str:
    return format_bytes(site.converted_bytes) if site.converted_bytes else "shared"


def _decibels(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.2f}"


def _recipe(report: Report) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th>'
        f"<td>{escape(value)}</td><td>{escape(about)}</td></tr>"
        for name, value, about in report.recipe.describe()
    )
    return f'<div class="scroll"><table class="recipe">{rows}</table></div>'


def _provenance(report: Report) -> str:
    facts = (
        ("mxort", report.mxort_version),
        ("ONNX opset", str(report.opset or "")),
        ("IR version", str(report.ir_version or "")),
        ("SHA-256 of the source", report.source_sha256),
    )
    rows = (f"<dt>{name}</dt><dd><code>{escape(value)}</code></dd>" for name, value in facts if value)
    return f"<dl>{''.join(rows)}</dl>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
{body}
</main>
<script>{js}</script>
</body>
</html>
"""

_CSS = """
:root { --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #dfe3e8; --accent: #0b6bcb;
  --rest: #b9c2cd; --on-rest: #1b1f24; --good: #116b3a; --good-bg: #def5e7; --idle: #5b6470;
  --idle-bg: #eceff2;
  --warn-bg: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --page: #12161b; --card: #1b2027; --ink: #e7ebf0;
  --soft: #a0abb8;
  --line: #303843; --accent: #4d9fef; --rest: #4a5563; --on-rest: #e7ebf0; --good: #7fe0a6;
  --good-bg: #143524;
  --idle: #b3bdc9; --idle-bg: #2b323c; --warn-bg: #3a3013; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 4px; }
header p, .caption { color: var(--soft); margin: 0 0 14px; overflow-wrap: anywhere; }
code { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px;
  margin-top: 18px; }
.tiles { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  gap: 12px;
  padding: 0; margin: 20px 0 0; }
.tiles li { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; }
.tiles strong { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); }
.totals { margin: 0 0 10px; font-size: 17px; }
svg { display: block; width: 100%; height: auto; font: 14px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .tick { fill: var(--soft); font-size: 13px; }
.weight { fill: var(--accent); background: var(--accent); } .rest { fill: var(--rest);
  background: var(--rest); }
svg .on-weight { fill: var(--card); } svg .on-rest { fill: var(--on-rest); }
svg .grid { stroke: var(--line); } svg .mean { stroke: var(--soft); stroke-dasharray: 5 4; }
svg .dot { fill: var(--accent); fill-opacity: .8; } svg .dot:hover { fill: var(--ink); fill-opacity: 1; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 12px 0 0;
  color: var(--soft); }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; }
.warnings { background: var(--warn-bg); }
.scroll { overflow: auto; max-height: 75vh; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { padding: 6px 12px 6px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
.sites thead th { position: sticky; top: 0; background: var(--card); z-index: 1; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.name { font: 13px/1.6 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere;
  width: 36%; min-width: 200px; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
[aria-sort="ascending"] button::after { content: " ↑";
  } [aria-sort="descending"] button::after { content: " ↓"; }
.status { border-radius: 99px; padding: 1px 9px; font-size: 13px; background: var(--idle-bg);
  color: var(--idle); }
.status.converted { background: var(--good-bg); color: var(--good); }
.recipe th { font-weight: normal; white-space: nowrap; } .recipe td:last-child { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
"""


_JS = """
for (const head of document.querySelectorAll(".sites th")) head.querySelector("button").onclick = () => {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = document.querySelector(".sites tbody"), numeric = head.classList.contains("number");
  const number = cell => cell.dataset.value === "inf" ? Infinity : +cell.dataset.value;
  const order = (a, b) => !numeric ? a.textContent.localeCompare(b.textContent, undefined, {numeric: true})
    : number(a) < number(b) ? -1 : number(a) > number(b) ? 1 : 0;
  const cell = row => row.cells[head.cellIndex];
  const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * order(cell(a), cell(b)));
  body.append(...rows);
};
"""
