"""What many lives or threads of one program have in common: calls that fail in turn, threads that agree."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[Mapping[str, Any]], NDArray[Any]]


def agree(
    sessions: Sequence[Run], feeds: Sequence[Mapping[str, Any]], runs: int, level: Callable[[], int]
) -> dict[str, Any]:
    """A thread for each of ``feeds`` runs ``runs`` times, in turns over the sessions, twice over: what differed from
    the first session alone, and ``level`` (of memory) before and after each time. Feeds differ, so that another
    thread's result cannot pass for one's own."""
    expected = [sessions[0](x) for x in feeds]
    for session in sessions[1:]:
        session(feeds[0])
    alone = level()
    wrong: list[str] = []

    def work(t: int, start: threading.Barrier) -> None:
        start.wait()
        try:
            for n in range(runs):
                if not np.array_equal(sessions[(t + n) % len(sessions)](feeds[t]), expected[t]):
                    wrong.append(f"thread {t}, run {n}")
                    return
        except Exception as error:
            wrong.append(f"thread {t}: {' '.join(str(error).split())}")

    def round_of_threads() -> int:
        start = threading.Barrier(len(feeds))
        threads = [threading.Thread(target=work, args=(t, start)) for t in range(len(feeds))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return level()

    return {"wrong": wrong, "alone": alone, "levels": [round_of_threads() for _ in range(2)]}


def fail_in_turn(
    calls: Mapping[str, int],
    functions: Iterable[str],
    places: Callable[[str, int], Iterable[int]],
    life: Callable[[str, int], tuple[str, str]],
) -> dict[str, Any]:
    """Lets calls of HIP functions fail, one a life: {function: {stage: count}}, and what must not happen.

    ``calls``: how often a life without faults calls each; ``functions``: which, none named: all; ``places``: which
    calls of how many; ``life``: the stage that a life with this fault reached, and what is wrong with it.
    """
    wanted = set(functions)
    seen: dict[str, dict[str, int]] = {}
    bad: list[str] = []
    for function, count in sorted(calls.items()):
        if wanted and function not in wanted:
            continue
        stages = seen.setdefault(function, {})
        for call in places(function, count):
            stage, wrong = life(function, call)
            if wrong:
                bad.append(f"{function} call {call} of {count}: {wrong}")
            stages[stage] = stages.get(stage, 0) + 1
    return {"seen": seen, "bad": bad}
