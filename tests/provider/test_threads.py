"""Many threads and sessions on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from simulated import run

THREADS, RUNS = 8, 200


def hammer(model: str, sessions: int, threads: int, runs: int) -> dict[str, Any]:
    import gpu

    import hammering

    with gpu.registered():
        opened = [gpu.session(model) for _ in range(sessions)]
        feeds = [gpu.feeds(opened[0], rows=1 + t % 2, seed=t) for t in range(threads)]
        of_each = [lambda x, session=session: session.run(None, x)[0] for session in opened]
        result = hammering.agree(of_each, feeds, runs, lambda: int(gpu.sim.counters()["allocations"]))
        of_each.clear()
        opened.clear()
    return result | {"live": gpu.live()}


@pytest.mark.parametrize("sessions", [1, 4])
def test_threads_agree_and_memory_returns(sessions: int, converted: Callable[..., str]) -> None:
    result = run(hammer, converted("single", activation_format="mxfp4"), sessions, THREADS, RUNS)
    assert result["wrong"] == []
    # What is kept for reuse is at most what so many runs at once need, however many there were.
    assert max(result["levels"]) <= THREADS * result["alone"]
    assert result["live"] == {}
