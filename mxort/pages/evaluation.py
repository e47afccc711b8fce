"""Evaluations of several conversions of a model as one HTML page: accuracy against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mxort.evaluation.evaluate import Evaluation
from mxort.pages import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWN = {"decoder": "perplexity", "classifier": "top1", "embedding": "cosine"}
"""The metric that is drawn, by kind of model; the table has all."""

_MEGABYTE = 1e6
_NAME_LENGTH = 48
_MARKERS = "osD^v<>ph"


def render(evaluations: Sequence[Evaluation]) -> str:
    """The whole page, of at least one evaluation, all against one reference. File names are escaped.

    Raises MxortError without the libraries that pages need.
    """
    first = evaluations[0]
    ordered = sorted(evaluations, key=lambda evaluation: evaluation.converted_bytes)
    return page.render(
        "evaluation.html.jinja",
        title=f"Conversions of {Path(first.reference).name}",
        first=first,
        metric=_DRAWN[first.kind],
        original=_original(first),
        evaluations=ordered,
        names=[name for name in first.metrics if not name.endswith("_reference")],
        picture=page.picture(lambda figure: _draw(figure, ordered), 4.0),
    )


def _original(evaluation: Evaluation) -> float:
    """The drawn metric of the reference itself: agreement with itself is complete."""
    return evaluation.metrics.get(f"{_DRAWN[evaluation.kind]}_reference", 1.0)


def _draw(figure: Figure, evaluations: Sequence[Evaluation]) -> None:
    """One mark for each conversion, in the order of the table, whose numbers the legend repeats."""
    metric = _DRAWN[evaluations[0].kind]
    axes = figure.subplots()
    axes.axhline(_original(evaluations[0]), linestyle="--", color=page.LINE, label="original")
    for index, evaluation in enumerate(evaluations):
        axes.plot(
            [evaluation.converted_bytes / _MEGABYTE],
            [evaluation.metrics[metric]],
            _MARKERS[index // 10 % len(_MARKERS)],
            color=f"C{index % 10}",
            label=f"{index + 1}: {_tail(evaluation.converted)}",
        )
    axes.set(xlabel="file, MB", ylabel=metric)
    axes.margins(0.1)
    axes.grid()
    figure.legend(loc="outside right upper")


def _tail(name: str) -> str:
    """The end of a long path, where the files differ: a legend has little room."""
    return name if len(name) <= _NAME_LENGTH else "…" + name[1 - _NAME_LENGTH :]
