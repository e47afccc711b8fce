"""Benchmarks as pictures, in any format that matplotlib writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mxort.bench_models import ModelBench
from mxort.bench_ops import OpBench, OpResult
from mxort.errors import MxortError


def _figure(width: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MxortError(f"a plot needs matplotlib ({error})") from error
    return Figure(figsize=(width, 4.5), layout="constrained")


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise MxortError(f"{path}: cannot write the plot ({error})") from error


def plot_ops(bench: OpBench, path: str) -> None:
    """Draws time over M for each weight shape, one line per candidate.

    Raises MxortError without matplotlib and where the file cannot be written.
    """
    shapes: dict[tuple[int, int], list[OpResult]] = {}
    for row in bench.rows:
        shapes.setdefault((row.K, row.N), []).append(row)
    peers = list(dict.fromkeys(row.peer for row in bench.rows))
    figure = _figure(4.5 * max(1, len(shapes)) + 2.5)
    for index, ((k, n), here) in enumerate(shapes.items()):
        axes = figure.add_subplot(1, len(shapes), index + 1)
        for color, peer in enumerate(peers):
            points = sorted((row.M, row.timing.p50_ms) for row in here if row.peer == peer)
            style = "--" if peer.startswith(("read", "peak")) else "-"
            label = peer if index == 0 else None
            x, y = [m for m, _ in points], [ms for _, ms in points]
            axes.plot(x, y, style, marker="o", color=f"C{color}", label=label)
        axes.set(xscale="log", yscale="log", xlabel="M (rows)", ylabel="median ms", title=f"K {k}, N {n}")
        ticks = sorted({row.M for row in here})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.suptitle(f"{bench.machine.cpu}, {bench.threads} threads, onnxruntime {bench.onnxruntime}")
    _save(figure, path)


def plot_models(bench: ModelBench, path: str) -> None:
    """Draws the latency percentiles of each model, of a token too for decoders, and the memory that loading takes.

    Raises MxortError without matplotlib and where the file cannot be written.
    """
    panels = [("one run, ms", [model.timing for model in bench.models])]
    if all(model.decode for model in bench.models):
        panels.append(("one token, ms", [model.decode for model in bench.models if model.decode]))
    figure = _figure(4.5 * (len(panels) + 1))
    names = [f"{i + 1}: {Path(model.model).name}" for i, model in enumerate(bench.models)]
    for index, (title, timings) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels) + 1, index + 1)
        for quantile, height in (("p99", 0.8), ("p90", 0.6), ("p50", 0.4)):
            axes.barh(names, [getattr(t, f"{quantile}_ms") for t in timings], height=height, label=quantile)
        axes.set(title=title)
        axes.legend()
    axes = figure.add_subplot(1, len(panels) + 1, len(panels) + 1)
    axes.barh(names, [model.anonymous_bytes / 1e6 for model in bench.models], height=0.6)
    axes.set(title="anonymous memory after loading, MB")
    for axes in figure.axes:
        axes.invert_yaxis()
    figure.suptitle(f"{bench.machine.cpu}, {bench.threads or 'all'} threads, onnxruntime {bench.onnxruntime}")
    _save(figure, path)
