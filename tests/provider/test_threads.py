"""Many threads and sessions on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from simulated import run


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
        for other in opened:
            other.run(None, inputs[0])
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

        levels = [round_of_threads() for _ in range(2)]
        del opened, work
    return {"wrong": wrong, "levels": levels, "live": gpu.live()}


@pytest.mark.parametrize("sessions", [1, 4])
@pytest.mark.parametrize("runs", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_threads_agree_and_memory_returns(sessions: int, runs: int, converted: Callable[..., str]) -> None:
    result = run(hammer, converted("single", activation_format="mxfp4"), sessions, 8, runs)
    assert result["wrong"] == []
    assert result["live"] == {}
    first, second = result["levels"]
    assert second <= first  # what is kept for reuse does not grow with the runs
