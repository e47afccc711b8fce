"""Evaluations of several conversions of a model as one HTML page: accuracy against size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mxort.evaluation.evaluate import Evaluation
from mxort.pages.report import (
    CHARACTER_WIDTH,
    CHART_WIDTH,
    DOTS_HEIGHT,
    LABEL_WIDTH,
    nice_ticks,
    page,
    section,
    svg,
)
from mxort.text import format_bytes

_DRAWN = {"decoder": "perplexity", "classifier": "top1", "embedding": "cosine"}
"""The metric that is drawn, by kind of model; the table has all."""

_TOP, _BOTTOM, _RIGHT = 36, DOTS_HEIGHT - 40, CHART_WIDTH - 24
_MEGABYTE = 1e6
_LABEL_GAP, _LINE = 14, 16
_LABEL_SIDE = 0.7
"""From this part of the width on a dot's name stands on its left."""


def render(evaluations: Sequence[Evaluation]) -> str:
    """The whole page, of at least one evaluation, all against one reference. File names are escaped."""
    first = evaluations[0]
    name = Path(first.reference).name
    caption = (
        f"{_DRAWN[first.kind]} on {first.predictions} predictions against the size of the file with external data. "
        "Dashed: the original."
    )
    body = (
        f"<header><h1>Conversions of {escape(name)}</h1><p><code>{escape(first.reference)}</code>, "
        f"{format_bytes(first.reference_bytes)}</p></header>",
        section("Accuracy against size", caption, _chart(evaluations)),
        section("Measured", "", _table(evaluations)),
    )
    return page(f"Conversions of {name}", body)


def _original(evaluation: Evaluation) -> float:
    """The drawn metric of the reference itself: agreement with itself is complete."""
    return evaluation.metrics.get(f"{_DRAWN[evaluation.kind]}_reference", 1.0)


def _chart(evaluations: Sequence[Evaluation]) -> str:
    metric, original = _DRAWN[evaluations[0].kind], _original(evaluations[0])
    values = [e.metrics[metric] for e in evaluations]
    sizes = [e.converted_bytes / _MEGABYTE for e in evaluations]
    ys = nice_ticks(min(*values, original), max(*values, original))
    xs = nice_ticks(min(sizes) * 0.95, max(sizes) * 1.05)  # a difference of some bytes is none

    def x_of(size: float) -> float:
        return LABEL_WIDTH + (size - xs[0]) / (xs[-1] - xs[0]) * (_RIGHT - LABEL_WIDTH)

    def y_of(value: float) -> float:
        return _BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (_BOTTOM - _TOP)

    rows = [f'<text class="tick" x="0" y="{_TOP - 20}">{metric}</text>']
    for tick in ys:
        y = y_of(tick)
        rows.append(f'<line class="grid" x1="{LABEL_WIDTH}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(
            f'<text class="tick" x="{LABEL_WIDTH - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in xs:
        unit = " MB" if tick == xs[-1] else ""
        rows.append(
            f'<text class="tick" x="{x_of(tick):.1f}" y="{_BOTTOM + 22}" text-anchor="middle">{tick:g}{unit}</text>'
        )
    y = y_of(original)
    rows.append(f'<line class="mean" x1="{LABEL_WIDTH}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    points = list(zip(_names(evaluations), sizes, values, strict=True))
    labels = _Labels()
    for name, size, value in sorted(points, key=lambda point: -point[2]):  # from the top
        x, y, what = x_of(size), y_of(value), f"{value:.4g}, {size:.4g} MB"
        dot = f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5">'
        rows += [f"{dot}<title>{escape(name)}: {what}</title></circle>", labels.place(name, x, y)]
    listed = "; ".join(f"{name} {value:.4g} at {size:.4g} MB" for name, size, value in points)
    return svg(
        "accuracy", f"{metric} against file size", f"Original {original:.4g}. {listed}.", DOTS_HEIGHT, rows
    )


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """File names without their suffix; whole paths where these are not different."""
    stems = [Path(evaluation.converted).stem for evaluation in evaluations]
    return stems if len({*stems}) == len(stems) else [evaluation.converted for evaluation in evaluations]


class _Labels:
    """Names beside dots, moved where they would lie on one another: sizes of recipes are often alike."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float]] = []

    def place(self, name: str, x: float, y: float) -> str:
        """SVG of the name of the dot at (x, y), with a line to it where it had to move."""
        left = x > LABEL_WIDTH + _LABEL_SIDE * (_RIGHT - LABEL_WIDTH)
        width = CHARACTER_WIDTH * len(name)
        start = x - _LABEL_GAP - width if left else x + _LABEL_GAP
        # In steps of a pixel down, then up: nothing lower is named above anything higher, unless there is no room.
        down = range(max(1, int(_BOTTOM - y)))
        moves = itertools.chain(down, itertools.count(0, -1))
        move = next(m for m in moves if self._free(start, start + width, y + m))
        self._taken.append((start, start + width, y + move))
        edge, anchor = (start + width, "end") if left else (start, "start")
        line = (
            f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{edge:.1f}" y2="{y + move:.1f}"/>'
            if move
            else ""
        )
        text = f'<text x="{edge:.1f}" y="{y + move + 5:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
        return line + text

    def _free(self, start: float, stop: float, y: float) -> bool:
        return all(stop <= a or start >= b or abs(y - other) >= _LINE for a, b, other in self._taken)


def _table(evaluations: Sequence[Evaluation]) -> str:
    names = [name for name in evaluations[0].metrics if not name.endswith("_reference")]
    heads = "".join(f'<th scope="col" class="number">{escape(n)}</th>' for n in ("size", *names))
    rows = []
    for e in sorted(evaluations, key=lambda evaluation: evaluation.converted_bytes):
        numbers = (format_bytes(e.converted_bytes), *(f"{e.metrics[name]:.4f}" for name in names))
        cells = "".join(f'<td class="number">{text}</td>' for text in numbers)
        rows.append(f'<tr><td class="name">{escape(e.converted)}</td>{cells}</tr>')
    head = f'<thead><tr><th scope="col">file</th>{heads}</tr></thead>'
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'
