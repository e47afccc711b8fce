"""A whole decoder: many threads over several sessions, and generators that record while a thread loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulated import run

import mxort

TOKENS = [5, 9, 17, 3]


def prompt_feeds(opened: Any, tokens: list[int], head: int) -> dict[str, Any]:
    import numpy as np

    ids = np.array([tokens])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for value in opened.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, head), np.float32)
    return feeds


def hammer(folder: str, sessions: int, threads: int, runs: int) -> dict[str, Any]:
    """``threads`` threads run prompts of their own, in turns over the sessions."""
    import json

    import gpu

    import hammering

    head = json.loads((Path(folder) / "genai_config.json").read_text())["model"]["decoder"]["head_size"]
    with gpu.registered():
        opened = [gpu.session(f"{folder}/model.onnx") for _ in range(sessions)]
        feeds = [prompt_feeds(opened[0], [3 + t, *TOKENS[: 1 + t % 4]], head) for t in range(threads)]
        of_each = [lambda x, session=session: session.run(["logits"], x)[0] for session in opened]
        result = hammering.agree(of_each, feeds, runs, lambda: int(gpu.sim.counters()["allocations"]))
        of_each.clear()
        opened.clear()
    return result | {"live": gpu.live()}


@pytest.mark.parametrize("runs", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_threads_over_sessions_of_a_model(decoder_folder: str, runs: int) -> None:
    result = run(hammer, decoder_folder, 4, 8, runs)
    assert result["wrong"] == []
    # What is kept for reuse is at most what so many runs at once need, however many there were.
    assert max(result["levels"]) <= 8 * result["alone"]
    assert result["live"] == {}


def recording_beside_loading(folder: str, rounds: int) -> dict[str, Any]:
    """Generators are made, which records a step, and generate, while another thread opens the model and runs it."""
    import gc
    import json
    import threading

    import gpu
    import numpy as np

    head = json.loads((Path(folder) / "genai_config.json").read_text())["model"]["decoder"]["head_size"]
    settings: dict[str, Any] = {"max_length": 32, "device_options": {"self_check": False}}
    problems: list[str] = []
    loaded: list[int] = []
    answers: list[list[int]] = []
    with gpu.registered():
        first = gpu.session(f"{folder}/model.onnx")
        feeds = prompt_feeds(first, TOKENS, head)
        (expected,) = first.run(["logits"], feeds)
        del first
        finished = threading.Event()

        def load() -> None:
            try:
                while not (loaded and finished.is_set()):
                    (y,) = gpu.session(f"{folder}/model.onnx").run(["logits"], feeds)
                    if not np.array_equal(y, expected):
                        problems.append("another session computes something else")
                    loaded.append(1)
            except Exception as error:
                problems.append(gpu.message(error))

        generator = mxort.Generator(folder, **settings)
        want = list(generator.generate(TOKENS, 3))
        del generator
        gc.collect()
        before = gpu.sim.calls()
        thread = threading.Thread(target=load)
        thread.start()
        try:
            for _ in range(rounds):
                generator = mxort.Generator(folder, **settings)
                answers.append(list(generator.generate(TOKENS, 3)))
                del generator
        finally:
            finished.set()
            thread.join()
        gc.collect()
        calls = gpu.sim.calls()
        recorded = calls["hipStreamBeginCapture"] - before["hipStreamBeginCapture"]
        graphs = gpu.sim.counters()["graphs"]
    return {"problems": problems, "loaded": len(loaded), "answers": answers, "want": want} | {
        "recorded": recorded,
        "graphs": graphs,
    }


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_generator_records_while_a_thread_loads(decoder_folder: str, rounds: int) -> None:
    result = run(recording_beside_loading, decoder_folder, rounds)
    assert result["problems"] == []
    assert result["loaded"] > 0
    assert result["answers"] == [result["want"]] * rounds
    assert result["recorded"] == rounds  # none was lost
    assert result["graphs"] == 0  # they went with their sessions
