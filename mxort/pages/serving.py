"""Servers under load as one HTML page: throughput and waiting against the number of clients."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mxort.evaluation.serve_bench import Point, ServeBench
from mxort.pages import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(bench: ServeBench) -> str:
    """The whole page. Names of models are escaped. Raises MxortError without the libraries that pages need."""
    shapes = []
    for index, shape in enumerate(bench.load.shapes):
        points = [point for point in bench.points if point.shape == shape]
        picture = page.picture(partial(_draw, bench=bench, points=points), 4.0, f"s{index}-")
        shapes.append({"shape": shape, "points": points, "picture": picture})
    return page.render("serving.html.jinja", title="Servers under load", bench=bench, shapes=shapes)


def _draw(figure: Figure, bench: ServeBench, points: list[Point]) -> None:
    """A line for each server."""
    speed, wait, token = figure.subplots(1, 3)
    for index, target in enumerate(bench.targets):
        own = [point for point in points if point.target == target and point.ttft_ms]
        clients = [point.concurrency for point in own]
        style = {"marker": "o", "color": f"C{index % 10}"}
        speed.plot(clients, [point.tokens_per_s for point in own], label=target, **style)
        wait.plot(clients, [point.ttft_ms["p50"] / 1e3 for point in own], **style)
        token.plot(clients, [point.tpot_ms["p50"] for point in own], **style)
    token.axhline(bench.load.tpot_limit_ms, linestyle="--", color=page.LINE)
    titles = ("tokens/s, all clients", "s to the first token, p50", "ms a token after it, p50")
    for axes, title in zip((speed, wait, token), titles, strict=True):
        axes.set(title=title, xlabel="clients")
        axes.set_xscale("log", base=2)
        axes.set_xticks(bench.load.concurrency, [str(number) for number in bench.load.concurrency])
        axes.set_ylim(bottom=0)
        axes.grid()
    figure.legend(loc="outside lower center", ncols=4)
