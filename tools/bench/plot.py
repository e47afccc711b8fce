"""Operators' benchmarks as pictures, in any format that matplotlib writes."""

from __future__ import annotations

from mxort.evaluation.plot import new_figure, save
from tools.bench.ops import OpBench, OpResult


def plot_ops(bench: OpBench, path: str) -> None:
    """Draws time over M for each weight shape, one line per candidate.

    Raises MxortError without matplotlib and where the file cannot be written.
    """
    shapes: dict[tuple[int, int], list[OpResult]] = {}
    for row in bench.rows:
        shapes.setdefault((row.K, row.N), []).append(row)
    peers = list(dict.fromkeys(row.peer for row in bench.rows))
    figure = new_figure(4.5 * max(1, len(shapes)) + 2.5)
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
    save(figure, path)
