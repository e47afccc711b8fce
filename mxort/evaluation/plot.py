"""Benchmarks as pictures, in any format that matplotlib writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mxort.errors import MxortError
from mxort.evaluation.model_bench import ModelBench


def new_figure(width: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MxortError(f'a plot needs matplotlib ({error}): pip install "mxort[report]"') from error
    return Figure(figsize=(width, 4.5), layout="constrained")


def save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise MxortError(f"{path}: cannot write the plot ({error})") from error


def plot_models(bench: ModelBench, path: str) -> None:
    """Draws the latency percentiles of each model, of a token too for decoders, and the memory that loading takes.

    Raises MxortError without matplotlib and where the file cannot be written.
    """
    panels = [("one run, ms", [model.timing for model in bench.models])]
    if all(model.decode for model in bench.models):
        panels.append(("one token, ms", [model.decode for model in bench.models if model.decode]))
    figure = new_figure(4.5 * (len(panels) + 1))
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
    save(figure, path)
