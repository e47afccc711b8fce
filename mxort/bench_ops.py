"""One matrix product, ours and its peers', in turns: which is faster where, and how near to a plain read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mxort.bench import Timing, interleave, summarize
from mxort.bench_peers import Activation, Peer, Run, Weights, choose_peers
from mxort.errors import MxortError
from mxort.machine import Machine, describe_machine
from mxort.op_models import relative_rms
from mxort.session import one_line, require_onnxruntime

if TYPE_CHECKING:
    from mxort.pipeline import Progress

DEFAULT_SHAPES = (
    *((m, 4096, 4096) for m in (1, 4, 16, 64, 256)),
    *((m, k, n) for k, n in ((384, 1536), (576, 1536), (1536, 576)) for m in (1, 32)),
)
"""(M, K, N): a 7B decoder's projection from one token to a prompt, and layers of the models in samples/."""


@dataclass(frozen=True)
class OpResult:
    """One candidate at one shape.

    ``error`` is the relative RMS against its own weights in float64, ``of_read`` the time that a plain
    read of as many bytes takes as a fraction of this row's; both None for the read rows themselves.
    """

    M: int
    K: int
    N: int
    peer: str
    timing: Timing
    weight_bytes: int
    gb_per_s: float
    gflop_per_s: float
    error: float | None
    of_read: float | None


@dataclass(frozen=True)
class Skip:
    """A candidate that was not timed; ``wrong`` means that it ran and its numbers were not right."""

    K: int
    N: int
    peer: str
    reason: str
    wrong: bool = False


@dataclass(frozen=True)
class OpBench:
    """Result of :func:`bench_ops`; ratios are to the first candidate of each shape."""

    machine: Machine
    onnxruntime: str
    threads: int
    rows: tuple[OpResult, ...]
    skipped: tuple[Skip, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return asdict(self)


def bench_ops(
    shapes: Sequence[tuple[int, int, int]] = DEFAULT_SHAPES,
    peers: Sequence[Peer] = (),
    *,
    runs: int = 50,
    warmup: int = 3,
    threads: int = 0,
    max_seconds: float = 10.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> OpBench:
    """Times ``peers`` (none: the default ones) in turns at each (M, K, N).

    ``threads`` is the same for all (0: the cores this process may use); ``max_seconds`` bounds the rounds
    of one shape. A peer that this machine cannot run, or that computes something else, is in ``skipped``.
    """
    machine = describe_machine()
    threads = threads or machine.cores
    report = progress or (lambda what, fraction: None)
    rows: list[OpResult] = []
    skipped: list[Skip] = []
    settings = {"runs": runs, "warmup": warmup, "max_seconds": max_seconds}
    for k, n in dict.fromkeys((k, n) for _, k, n in shapes):
        running, failed = _build(peers or choose_peers(), k, n, seed, threads)
        skipped += failed
        for m in [m for m, k2, n2 in shapes if (k2, n2) == (k, n)]:
            report(f"{m} x {k} x {n}", len(rows) / max(1, len(shapes) * len(running)))
            a = np.random.default_rng(seed).standard_normal((m, k), dtype=np.float32)
            timed, wrong = _time_shape(a, n, running, settings)
            rows += timed
            skipped += wrong
    return OpBench(machine, require_onnxruntime().__version__, threads, tuple(rows), tuple(skipped))


@dataclass(frozen=True)
class _Running:
    """A candidate with its weights, ready to run."""

    peer: Peer
    weights: Weights
    run: Run

    def error(self, a: Activation) -> float:
        """Relative RMS of the first and last output columns against its own weights in float64."""
        y = np.asarray(self.run(a))
        if self.peer.stored is None:
            return 0.0
        columns = np.r_[: _CHECKED_COLUMNS // 2, -(_CHECKED_COLUMNS // 2) : 0]
        weights = self.peer.stored(self.weights, columns).astype(np.float64)
        return relative_rms(y[:, columns], a.astype(np.float64) @ weights.T)


_CHECKED_COLUMNS = 64  # enough to see a wrong kernel; all of them would take longer than the benchmark


def _build(
    peers: Sequence[Peer], k: int, n: int, seed: int, threads: int
) -> tuple[list[_Running], list[Skip]]:
    running, failed = [], []
    for index, peer in enumerate(peers):
        weights = Weights(k, n, (seed, index))
        try:
            running.append(_Running(peer, weights, peer.make(weights, threads)))
        except Exception as error:  # whatever a peer raises, the others are still worth measuring
            failed.append(Skip(k, n, peer.name, one_line(error)))
    return running, failed


def _time_shape(
    a: Activation, n: int, candidates: Sequence[_Running], settings: dict[str, Any]
) -> tuple[list[OpResult], list[Skip]]:
    m, k = a.shape
    right, errors, wrong = [], [], []
    for candidate in candidates:
        error = candidate.error(a)
        if error <= candidate.peer.tolerance:
            right.append(candidate)
            errors.append(error)
        else:  # a NaN too
            reason = f"relative error {error:.1e} at M = {m}, at most {candidate.peer.tolerance:g} is right"
            wrong.append(Skip(k, n, candidate.peer.name, reason, wrong=True))
    times = interleave([_timed(candidate.run, a) for candidate in right], **settings)
    timings = [summarize(seconds, times[0]) for seconds in times]
    sizes = [candidate.peer.weight_bytes(k, n) for candidate in right]
    reads = {
        size: timing.p50_ms
        for candidate, size, timing in zip(right, sizes, timings, strict=True)
        if candidate.peer.stored is None
    }
    rows = [
        _row((m, k, n), candidate.peer, timing, error, reads)
        for candidate, timing, error in zip(right, timings, errors, strict=True)
    ]
    return rows, wrong


def _row(
    shape: tuple[int, int, int], peer: Peer, timing: Timing, error: float, reads: dict[int, float]
) -> OpResult:
    m, k, n = shape
    size, seconds = peer.weight_bytes(k, n), timing.p50_ms / 1e3
    multiplies = peer.stored is not None
    of_read = None
    if multiplies and reads:
        nearest = min(reads, key=lambda read: abs(np.log(read / size)))
        of_read = reads[nearest] * (size / nearest) / timing.p50_ms
    return OpResult(
        M=m,
        K=k,
        N=n,
        peer=peer.name,
        timing=timing,
        weight_bytes=size,
        gb_per_s=size / seconds / 1e9,
        gflop_per_s=2 * m * k * n / seconds / 1e9 if multiplies else 0.0,
        error=error if multiplies else None,
        of_read=of_read,
    )


def _timed(run: Run, a: Activation) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        run(a)
        return time.perf_counter() - start

    return once


def plot(bench: OpBench, path: str) -> None:
    """Draws time over M for each weight shape, one line per candidate.

    Raises MxortError without matplotlib and where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MxortError(f"a plot needs matplotlib ({error})") from error
    shapes: dict[tuple[int, int], list[OpResult]] = {}
    for row in bench.rows:
        shapes.setdefault((row.K, row.N), []).append(row)
    peers = list(dict.fromkeys(row.peer for row in bench.rows))
    figure = Figure(figsize=(4.5 * max(1, len(shapes)) + 2.5, 4.5), layout="constrained")
    for index, ((k, n), here) in enumerate(shapes.items()):
        axes = figure.add_subplot(1, len(shapes), index + 1)
        for color, peer in enumerate(peers):
            points = sorted((row.M, row.timing.p50_ms) for row in here if row.peer == peer)
            style = "--" if peer.startswith("read") else "-"
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
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise MxortError(f"{path}: cannot write the plot ({error})") from error
