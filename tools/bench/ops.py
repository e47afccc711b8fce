"""One matrix product, ours and its peers', in turns: which is faster where, and how near to the machine's limits.

*Hot*: a turn runs the candidate once untimed and then several times timed, so that its weights lie in the last cache
level they fit into. *Cold*: a candidate has several copies with weights of their own, together larger than the caches,
and a turn runs each copy once, as a model runs its layers: weights come from memory, code does not. The turn counts
with the median of its times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mxort.evaluation.turns import Timing, interleave, settle, summarize
from mxort.runtime.machine import Machine, describe_machine
from mxort.runtime.op_models import relative_rms
from mxort.runtime.session import one_line, require_onnxruntime
from tools.bench.peers import Activation, Bind, Bound, Peer, Weights, choose_peers

if TYPE_CHECKING:
    from mxort.progress import Progress

DEFAULT_SHAPES = (
    *((m, 4096, 4096) for m in (1, 4, 16, 64, 256)),
    *((m, k, n) for k, n in ((384, 1536), (576, 1536), (1536, 576)) for m in (1, 32)),
)
"""(M, K, N): a 7B decoder's projection from one token to a prompt, and layers of the models in samples/."""

_TURN_SECONDS = 4e-3  # long enough for a median of short runs, short enough that the machine does not change
_MOST_RUNS_OF_A_TURN = 9
_MOST_COPIES = 12


@dataclass(frozen=True)
class OpResult:
    """One candidate at one shape.

    ``error`` is the relative RMS against its own weights in float64. ``of_read`` is the time of a plain read of as
    many bytes as a fraction of this row's, ``of_peak`` the same for the products at the register peak of ``unit``,
    the unit that multiplies in this row. All None for the limits themselves, and where the limit was not measured.
    ``turns_ms`` are the times of the turns, in their order.
    """

    M: int
    K: int
    N: int
    cold: bool
    peer: str
    timing: Timing
    weight_bytes: int
    gb_per_s: float
    gflop_per_s: float
    error: float | None
    of_read: float | None
    of_peak: float | None
    unit: str | None
    turns_ms: tuple[float, ...]


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
    cold: bool = False,
    max_seconds: float = 10.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> OpBench:
    """Times ``peers`` (none: the default ones) in turns at each (M, K, N), hot or ``cold``.

    ``threads`` is the same for all (0: the cores this process may use); ``max_seconds`` bounds the rounds
    of one shape. A peer that this machine cannot run, or that computes something else, is in ``skipped``.
    """
    machine = describe_machine()
    threads = threads or machine.cores
    report = progress or (lambda what, fraction: None)
    rows: list[OpResult] = []
    skipped: list[Skip] = []
    for k, n in dict.fromkeys((k, n) for _, k, n in shapes):
        running, failed = _build(peers or choose_peers(), k, n, (seed, threads), cold)
        skipped += failed
        for m in [m for m, k2, n2 in shapes if (k2, n2) == (k, n)]:
            report(f"{m} x {k} x {n}", len(rows) / max(1, len(shapes) * len(running)))
            a = np.random.default_rng(seed).standard_normal((m, k), dtype=np.float32)
            right, errors, wrong = _check(a, running)
            skipped += wrong
            times = interleave(
                [_turn(candidate, a, threads, cold) for candidate in right],
                runs=runs,
                warmup=warmup,
                max_seconds=max_seconds,
            )
            rows += _rows((m, k, n), right, errors, times, cold)
    return OpBench(machine, require_onnxruntime().__version__, threads, tuple(rows), tuple(skipped))


@dataclass(frozen=True)
class _Running:
    """A candidate ready to run: one copy, or as many as are larger than the caches."""

    peer: Peer
    copies: tuple[tuple[Weights, Bind], ...]

    def error(self, a: Activation) -> float:
        """Relative RMS of the first and last output columns against its own weights in float64."""
        weights, bind = self.copies[0]
        bound = bind(a)
        bound.seconds()
        if self.peer.stored is None:
            return 0.0
        columns = np.r_[: _CHECKED_COLUMNS // 2, -(_CHECKED_COLUMNS // 2) : 0]
        stored = self.peer.stored(weights, columns).astype(np.float64)
        return relative_rms(np.asarray(bound.result())[:, columns], a.astype(np.float64) @ stored.T)


_CHECKED_COLUMNS = 64  # enough to see a wrong kernel; all of them would take longer than the benchmark


def _build(
    peers: Sequence[Peer], k: int, n: int, seed_and_threads: tuple[int, int], cold: bool
) -> tuple[list[_Running], list[Skip]]:
    seed, threads = seed_and_threads
    running, failed = [], []
    for index, peer in enumerate(peers):
        count = copies_for(peer.weight_bytes(k, n)) if cold else 1
        copies: list[tuple[Weights, Bind]] = []
        try:
            for copy in range(count):
                weights = Weights(k, n, (seed, index, copy))
                copies.append((weights, peer.make(weights, threads)))
            running.append(_Running(peer, tuple(copies)))
        except Exception as error:  # whatever a peer raises, the others are still worth measuring
            failed.append(Skip(k, n, peer.name, one_line(error)))
    return running, failed


def copies_for(weight_bytes: int) -> int:
    """How many copies of weights are twice as large as the caches, within reason."""
    larger = 2 * describe_machine().cache_bytes
    return max(3, min(_MOST_COPIES, -(-larger // weight_bytes))) if weight_bytes else 1


def _check(a: Activation, candidates: Sequence[_Running]) -> tuple[list[_Running], list[float], list[Skip]]:
    """Those whose numbers are right, their errors, and the others."""
    right, errors, wrong = [], [], []
    for candidate in candidates:
        error = candidate.error(a)
        if error <= candidate.peer.tolerance:
            right.append(candidate)
            errors.append(error)
        else:  # a NaN too
            weights, _ = candidate.copies[0]
            limit = candidate.peer.tolerance
            reason = f"relative error {error:.1e} at M = {len(a)}, at most {limit:g} is right"
            wrong.append(Skip(weights.k, weights.n, candidate.peer.name, reason, wrong=True))
    return right, errors, wrong


def _turn(candidate: _Running, a: Activation, threads: int, cold: bool) -> Callable[[], float]:
    bounds = [bind(a) for _, bind in candidate.copies]
    return lambda: _turn_seconds(bounds, threads, cold)


def _turn_seconds(bounds: Sequence[Bound], threads: int, cold: bool) -> float:
    settle(threads)
    if cold:
        return float(np.median([bound.seconds() for bound in bounds]))
    first = bounds[0].seconds()
    count = max(1, min(_MOST_RUNS_OF_A_TURN, int(_TURN_SECONDS / max(first, 1e-9))))
    return float(np.median([bounds[0].seconds() for _ in range(count)]))


def _rows(
    shape: tuple[int, int, int],
    candidates: Sequence[_Running],
    errors: Sequence[float],
    times: Sequence[Sequence[float]],
    cold: bool,
) -> list[OpResult]:
    m, k, n = shape
    limits = {
        candidate.peer: float(np.median(seconds))
        for candidate, seconds in zip(candidates, times, strict=True)
        if candidate.peer.stored is None
    }
    rows = []
    for candidate, error, seconds in zip(candidates, errors, times, strict=True):
        peer = candidate.peer
        size, median = peer.weight_bytes(k, n), float(np.median(seconds))
        multiplies = peer.stored is not None
        unit, passes = peer.unit(m) if multiplies else (None, 0)
        alike = {limit: time for limit, time in limits.items() if limit.threads == peer.threads}
        reads = {
            bytes_read: time for limit, time in alike.items() if (bytes_read := limit.weight_bytes(k, n))
        }
        peak = next((time for limit, time in alike.items() if limit.base_name == f"peak-{unit}"), None)
        rows.append(
            OpResult(
                M=m,
                K=k,
                N=n,
                cold=cold,
                peer=peer.name,
                timing=summarize(seconds, times[0]),
                weight_bytes=size,
                gb_per_s=size / median / 1e9,
                gflop_per_s=2 * m * k * n / median / 1e9 if multiplies or not size else 0.0,
                error=error if multiplies else None,
                of_read=_read_seconds(reads, size) / median if multiplies and reads else None,
                of_peak=passes * peak / median if peak else None,
                unit=unit,
                turns_ms=tuple(round(s * 1e3, 6) for s in seconds),
            )
        )
    return rows


def _read_seconds(reads: dict[int, float], size: int) -> float:
    """Time of a plain read of ``size`` bytes, from that of the nearest size that was measured."""
    nearest = min(reads, key=lambda read: abs(np.log(read / size)))
    return reads[nearest] * size / nearest
