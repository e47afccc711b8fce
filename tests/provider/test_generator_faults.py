"""A whole decoder under mxort.Generator where HIP calls fail: an error that says so, and the next answer is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from simulated import run

import mxort
from hip_faults import ALIKE, ERRORS, FREES, GRAPHS, UNKNOWN

STEPS = 3
TOKENS = [5, 9, 17, 3]


def attempt(folder: str, fault: tuple[str, int] | None) -> dict[str, Any]:
    """Opens a generator, then three answers to one prompt, with one call of one function failing; one more where it is
    the third that fails."""
    import gc

    import gpu

    if fault:
        gpu.sim.fail(*fault, ERRORS.get(fault[0], UNKNOWN))
    messages, answers, level = [], [], []
    opened = None
    try:
        opened = mxort.Generator(folder, max_length=32, device_options={"self_check": False})
        while len(answers) < 3 or (answers[-1] is None and len(answers) == 3):
            try:
                answers.append(list(opened.generate(TOKENS, STEPS)))
            except Exception as error:
                messages.append(gpu.message(error))
                answers.append(None)
            gc.collect()
            level.append(gpu.sim.counters()["allocations"])
    except Exception as error:
        messages.append(gpu.message(error))
    opened = None
    gc.collect()
    stage = "open" if not answers else "run" if None in answers else "ok"
    return {
        "stage": stage,
        "messages": messages,
        "answers": answers,
        "level": level,
        "live": gpu.live(),
        "calls": gpu.sim.calls(),
    }


def judge(fork: Any, reference: Any, function: str) -> str:
    """What is wrong with the outcome of a fault; "" if nothing is."""
    if fork.death:
        return f"died: {fork.death}: {fork.stderr[-500:]}"
    result = fork.result
    want = reference["answers"][0]
    if any(answer not in (None, want) for answer in result["answers"]):
        return f"wrong tokens: {result['answers']}"
    text = " ".join(result["messages"]) + fork.stderr
    names = (
        ("hip", "gpu:") if result["stage"] == "open" else ("hip",)
    )  # a GPU that cannot be asked is one less
    if result["stage"] != "ok" and not any(name in text.lower() for name in names):
        return f"error that does not name HIP at {result['stage']}: {text}"
    if function in FREES:
        return ""
    if result["stage"] == "run" and result["answers"][-1] is None:
        return f"the generator does not recover: {text}"
    most = max(reference["level"])
    if any(level > most for level in result["level"]):
        return f"more memory than without a fault ({most}): {result['level']}"
    if any(count > reference["live"].get(kind, 0) for kind, count in result["live"].items()):
        return f"leak at {result['stage']}: {result['live']}, without a fault {reference['live']}"
    return ""


def sweep(folder: str, functions: list[str], most: int) -> dict[str, Any]:
    """Lets at most ``most`` calls of each HIP function fail, spread from the first to the last. One: a late one, which
    is of a step. No functions named: of all."""
    import gpu

    import hammering

    gpu.prime()
    first = gpu.forked(attempt, folder, None)
    reference = first.result
    assert not first.death and reference["stage"] == "ok", first

    def places(function: str, calls: int) -> Iterable[int]:
        if function in ALIKE:
            return [1, calls // 2]
        return range(1, calls + 1, max(1, calls // most)) if most > 1 else [max(1, calls * 3 // 4)]

    def life(function: str, call: int) -> tuple[str, str]:
        fork = gpu.forked(attempt, folder, (function, call))
        return "died" if fork.death else fork.result["stage"], judge(fork, reference, function)

    return hammering.fail_in_turn(reference["calls"], functions, places, life)


def test_a_call_of_a_step_may_fail(decoder_folder: str) -> None:
    functions = ["hipGraphLaunch", "hipMalloc", "hipMemcpyAsync", "hipModuleLaunchKernel"]
    result = run(sweep, decoder_folder, functions, 1)
    assert result["bad"] == []
    assert result["seen"]["hipGraphLaunch"] == {"run": 1}
    assert set(result["seen"]) == set(functions)


@pytest.mark.slow
def test_calls_from_opening_to_the_end_may_fail(decoder_folder: str) -> None:
    result = run(sweep, decoder_folder, [], 12)
    assert result["bad"] == []
    assert [name for name in GRAPHS if not result["seen"].get(name)] == []
