"""Many threads and sessions on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from simulated import run

THREADS, RUNS = 8, 200


def hammer(model: str, sessions: int, threads: int, runs: int) -> dict[str, Any]:
    """``threads`` threads run ``runs`` times each, in turns over the sessions, each thread with inputs of its own."""
    import threading

    import gpu
    import numpy as np

    with gpu.registered():
        opened = [gpu.session(model) for _ in range(sessions)]
        # One or two rows, other numbers: another thread's result cannot pass for one's own.
        inputs = [gpu.feeds(opened[0], rows=1 + t % 2, seed=t) for t in range(threads)]
        expected = [opened[0].run(None, x)[0] for x in inputs]
        for n in range(sessions):
            opened[n].run(None, inputs[0])
        wrong: list[str] = []
        start = threading.Barrier(threads)

        def work(t: int) -> None:
            start.wait()
            try:
                for n in range(runs):
                    (y,) = opened[(t + n) % sessions].run(None, inputs[t])
                    if not np.array_equal(y, expected[t]):
                        wrong.append(f"thread {t}, run {n}")
                        return
            except Exception as error:
                wrong.append(f"thread {t}: {gpu.message(error)}")

        def round_of_threads() -> int:
            all_threads = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
            for thread in all_threads:
                thread.start()
            for thread in all_threads:
                thread.join()
            return int(gpu.sim.counters()["allocations"])

        alone = gpu.sim.counters()["allocations"]
        levels = [round_of_threads() for _ in range(2)]
        opened.clear()
    return {"wrong": wrong, "alone": alone, "levels": levels, "live": gpu.live()}


@pytest.mark.parametrize("sessions", [1, 4])
def test_threads_agree_and_memory_returns(sessions: int, converted: Callable[..., str]) -> None:
    result = run(hammer, converted("single", activation_format="mxfp4"), sessions, THREADS, RUNS)
    assert result["wrong"] == []
    # What is kept for reuse is at most what so many runs at once need, however many there were.
    assert max(result["levels"]) <= THREADS * result["alone"]
    assert result["live"] == {}
