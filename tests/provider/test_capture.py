"""Graph capture where other threads use the device too, as ROCm's rules for that are (tests/hipsim/README.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from simulated import run

OPTIONS = {"graph_capture": 1}


def bound(opened: Any) -> tuple[Callable[..., Any], Any]:
    """(run the session with input and output in device memory under a graph's number, what it must give)."""
    import gpu
    import numpy as np
    import onnxruntime as ort

    (x,) = gpu.feeds(opened).values()
    given = ort.OrtValue.ortvalue_from_numpy(x, "gpu", 0, gpu.VENDOR)
    blank = np.zeros((len(x), opened.get_outputs()[0].shape[1]), np.float32)
    taken = ort.OrtValue.ortvalue_from_numpy(blank, "gpu", 0, gpu.VENDOR)
    binding = opened.io_binding()
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", taken)

    def run_once(graph: int) -> Any:
        settings = ort.RunOptions()
        settings.add_run_config_entry("gpu_graph_id", str(graph))
        taken.update_inplace(blank)  # an earlier result must not pass for this run's
        opened.run_with_iobinding(binding, settings)
        return taken.numpy()

    return run_once, run_once(-1)  # without a graph


def lost_recordings(model: str, lost: int, runs: int) -> dict[str, Any]:
    """``runs`` runs, of whose recordings the first ``lost`` are lost: graphs and launches of graphs after each."""
    import gpu
    import numpy as np

    with gpu.registered():
        opened = gpu.session(model, options=OPTIONS)
        run_once, expected = bound(opened)
        gpu.sim.lose_captures(lost)
        graphs, right = [], []
        for _ in range(runs):
            right.append(bool(np.array_equal(run_once(0), expected)))
            graphs.append(gpu.sim.counters()["graphs"])
        opened = run_once = None
    return {"right": right, "graphs": graphs, "live": gpu.live()}


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_recording_is_made_again_in_the_same_run(lost: int, converted: Callable[..., str]) -> None:
    result = run(lost_recordings, converted("single", activation_format="mxfp4"), lost, 3)
    assert result["right"] == [True] * 3
    assert result["graphs"] == [1] * 3
    assert result["live"] == {}


@pytest.mark.parametrize("lost", [3, 7])
def test_after_several_losses_runs_are_ordinary_until_it_is_tried_again(
    lost: int, converted: Callable[..., str]
) -> None:
    """Three tries, sixteen ordinary runs, and so on; no run fails, and each computes its result."""
    runs = 16 * (lost // 3) + 3
    result = run(lost_recordings, converted("single", activation_format="mxfp4"), lost, runs)
    assert result["right"] == [True] * runs
    assert result["graphs"] == [0] * (16 * (lost // 3)) + [1] * 3
    assert result["live"] == {}


def repeated(work: Callable[[], bool], finished: Any, problems: list[str], rounds: list[int]) -> Any:
    """A thread that works until it is told to stop, and at least once."""
    import threading

    import gpu

    def body() -> None:
        done = 0
        try:
            while not (done and finished.is_set()):
                if not work():
                    problems.append(f"{work.__name__}: wrong result")
                done += 1
        except Exception as error:
            problems.append(f"{work.__name__}: {gpu.message(error)}")
        rounds.append(done)

    return threading.Thread(target=body)


def beside_others(model: str, captures: int) -> dict[str, Any]:
    """One thread records a new graph in each run; others meanwhile open sessions, run them, and free tensors."""
    import threading

    import gpu
    import numpy as np
    import onnxruntime as ort

    problems: list[str] = []
    rounds: list[int] = []
    with gpu.registered():
        opened, replaying = (gpu.session(model, options=OPTIONS) for _ in range(2))
        (run_once, expected), (replay_once, _) = bound(opened), bound(replaying)

        def load() -> bool:
            other = gpu.session(model)
            return bool(np.array_equal(other.run(None, gpu.feeds(other))[0], expected))

        def tensors() -> bool:
            value = ort.OrtValue.ortvalue_from_numpy(expected, "gpu", 0, gpu.VENDOR)
            return bool(np.array_equal(value.numpy(), expected))

        def replay() -> bool:
            return bool(np.array_equal(replay_once(0), expected))

        finished = threading.Event()
        threads = [repeated(work, finished, problems, rounds) for work in (load, tensors, replay)]
        for thread in threads:
            thread.start()
        wrong = sum(not np.array_equal(run_once(graph), expected) for graph in range(captures))
        finished.set()
        for thread in threads:
            thread.join()
        recorded = gpu.sim.calls()["hipStreamBeginCapture"]
        graphs = gpu.sim.counters()["graphs"]
        opened = replaying = run_once = replay_once = None
    return {"wrong": wrong, "problems": problems, "rounds": rounds, "recorded": recorded, "graphs": graphs}


def test_recording_while_other_threads_use_the_device(converted: Callable[..., str]) -> None:
    """Nothing fails and no recording is lost: what concerns the whole device waits for its end."""
    result = run(beside_others, converted("single", activation_format="mxfp4"), 40)
    assert result["problems"] == []
    assert result["wrong"] == 0
    assert min(result["rounds"]) > 0  # the threads did run
    assert result["graphs"] == result["recorded"] == 40 + 1
