"""mxort/bench.py: the clockwork, with made-up clocks."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from mxort.evaluation import turns as bench
from mxort.evaluation.turns import interleave, summarize


def test_summary_of_known_times():
    seconds = [i / 1000 for i in range(1, 101)]  # 1 ... 100 ms
    timing = summarize(seconds, [2 * s for s in seconds])
    assert timing.runs == 100
    assert timing.min_ms == pytest.approx(1)
    assert timing.p50_ms == pytest.approx(50.5)
    assert timing.p90_ms == pytest.approx(90.1)
    assert timing.p99_ms == pytest.approx(99.01)
    assert timing.ratio == pytest.approx(2)


def test_the_ratio_is_taken_round_by_round():
    """The machine slows down tenfold in the third round, between the two: their medians would say 1/5."""
    first = [1.0, 1.0, 1.0, 10.0, 10.0]
    second = [0.5, 0.5, 5.0, 5.0, 5.0]
    assert summarize(second, first).ratio == pytest.approx(2)


def test_candidates_take_turns_and_warmup_is_not_counted():
    order = []
    clocks = [iter(range(100)), iter(range(100, 200))]
    candidates = [lambda i=i: order.append("AB"[i]) or float(next(clocks[i])) for i in (0, 1)]
    rounds = []
    times = interleave(candidates, runs=3, warmup=2, on_round=rounds.append)
    assert "".join(order) == "AB" * 5
    assert times == [[2.0, 3.0, 4.0], [102.0, 103.0, 104.0]]
    assert rounds == [1, 2, 3]


def test_time_ends_a_benchmark_but_not_before_three_rounds():
    slow = [lambda: time.sleep(0.01) or 0.01]
    assert len(interleave(slow, runs=1000, warmup=0, max_seconds=0)[0]) == bench.MIN_ROUNDS
    assert bench.MIN_ROUNDS < len(interleave(slow, runs=1000, warmup=0, max_seconds=0.1)[0]) < 15


def test_a_pinned_process_stays_on_as_many_cores_as_it_has_threads():
    code = "import os; from mxort.evaluation.turns import pin; pin(0); print(len(os.sched_getaffinity(0))); pin(1)"
    code += "; print(len(os.sched_getaffinity(0)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(os.sched_getaffinity(0))), "1"]
