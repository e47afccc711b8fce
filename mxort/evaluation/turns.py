"""Benchmarks that can be compared: candidates take turns (A B A B ...), so that all meet the same machine.

Here is the clockwork; ``bench_ops`` compares single operators, ``bench_models`` whole models.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mxort.runtime.session import require_onnxruntime

MIN_ROUNDS = 3
"""Rounds that are timed even where they take longer than the time allowed."""


@dataclass(frozen=True)
class Timing:
    """Times of one candidate in milliseconds, and how they compare with those of the first candidate.

    ``ratio`` is the median over the rounds of (time of the first / time of this one): above 1 is faster
    than the first.
    """

    runs: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    ratio: float


def summarize(seconds: Sequence[float], baseline: Sequence[float]) -> Timing:
    """The Timing of ``seconds`` against ``baseline``, measured in the same rounds."""
    ms = np.asarray(seconds) * 1e3
    p50, p90, p99 = (float(p) for p in np.percentile(ms, (50, 90, 99)))
    ratio = float(np.median(np.asarray(baseline) / np.asarray(seconds)))
    return Timing(len(ms), float(ms.min()), p50, p90, p99, ratio)


def interleave(
    candidates: Sequence[Callable[[], float]],
    *,
    runs: int,
    warmup: int,
    max_seconds: float = float("inf"),
    on_round: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Lets the candidates take turns; returns the times that each reported, round by round.

    ``warmup`` rounds are not counted. Stops before ``runs`` rounds where they take longer than
    ``max_seconds``, but never before MIN_ROUNDS.
    """
    for _ in range(warmup):
        for candidate in candidates:
            candidate()
    times: list[list[float]] = [[] for _ in candidates]
    deadline = time.perf_counter() + max_seconds
    for done in range(runs):
        if done >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        for candidate, measured in zip(candidates, times, strict=True):
            measured.append(candidate())
        on_round(done + 1)
    return times


def session_options(threads: int, *, spin: bool = False) -> Any:
    """Options for timing: ``threads`` (0: onnxruntime's choice), which wait for the next call without spinning
    unless ``spin`` says that whoever runs next waits for them to stop (``settle``)."""
    options = require_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def settle(threads: int) -> None:
    """Waits until the threads of the candidate before have stopped spinning."""
    if threads != 1:
        time.sleep(_SPIN_SECONDS)


_SPIN_SECONDS = 0.06


def pin(threads: int) -> None:
    """Keeps this process, and the threads it will start, on the last ``threads`` of its cores (0: on all)."""
    cores = sorted(os.sched_getaffinity(0))
    if 0 < threads < len(cores):
        os.sched_setaffinity(0, cores[-threads:])
