"""Several devices, several sessions, and requests that go beyond what there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from simulated import Outcome, run, start

import op_model
import oracle


def two_devices(model: str) -> dict[str, Any]:
    """The same model on each of two devices, run in turns."""
    import gpu
    import numpy as np

    with gpu.registered():
        found = len(gpu.devices())
        opened = [gpu.session(model, device=n) for n in range(2)]
        x = gpu.feeds(opened[0])
        results = [s.run(None, x)[0] for s in opened * 2]
        given = [ort_value(x, n) for n in range(2)]
        bound = []
        for n, session in enumerate(opened):
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", given[n])
            binding.bind_output("y", "cpu")
            session.run_with_iobinding(binding)
            bound.append(binding.copy_outputs_to_cpu()[0])
            del binding
        # A tensor of the other device, which is copied across.
        binding = opened[1].io_binding()
        binding.bind_ortvalue_input("x", given[0])
        binding.bind_output("y", "cpu")
        try:
            opened[1].run_with_iobinding(binding)
            foreign = "equal" if np.array_equal(binding.copy_outputs_to_cpu()[0], results[0]) else "wrong"
        except Exception as error:
            foreign = gpu.message(error)
        del opened, session, given, binding
    equal = all(np.array_equal(y, results[0]) for y in results + bound)
    return {"devices": found, "equal": equal, "foreign": foreign, "live": gpu.live()}


def ort_value(x: dict[str, Any], device: int) -> Any:
    import gpu
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(x["x"], "gpu", device, gpu.VENDOR)


def test_two_devices(converted: Callable[..., str]) -> None:
    result = run(two_devices, converted("single", activation_format="mxfp4"), HIPSIM_DEVICES="gfx950:2")
    assert result["devices"] == 2
    assert result["equal"]
    assert result["foreign"] == "equal", result["foreign"]
    assert result["live"] == {}


def shared(model: str) -> dict[str, Any]:
    """Bytes uploaded by the first and the second session on a model."""
    import gpu

    with gpu.registered():
        uploaded, opened = [0], []
        for _ in range(3):
            opened.append(gpu.session(model))
            uploaded.append(gpu.sim.counters()["bytes_to_device"])
        x = gpu.feeds(opened[0])
        first = opened[0].run(None, x)[0]
        del opened[0]
        again = opened[0].run(None, x)[0]
        del opened
    steps = [b - a for a, b in itertools.pairwise(uploaded)]
    return {"uploaded": steps, "equal": bool((first == again).all()), "live": gpu.live()}


def test_sessions_share_their_weights(converted: Callable[..., str]) -> None:
    result = run(shared, converted("single", activation_format="mxfp4"))
    first, *others = result["uploaded"]
    assert first > 160 * 96 // 2
    assert others == [0, 0]
    assert result["equal"]
    assert result["live"] == {}


def refused(model: str, rows: int) -> dict[str, Any]:
    """How a run of so many rows fails, and what is left of it."""
    import gpu

    error = ""
    with gpu.registered():
        try:
            opened = gpu.session(model)
            opened.run(None, gpu.feeds(opened, rows=rows))
        except Exception as wrong:
            error = gpu.message(wrong)
        opened = None
    return {"error": error, "live": gpu.live()}


def assert_refused(outcome: Outcome, words: list[str]) -> None:
    """An error, with all words in it or in the log: of an allocation ONNX Runtime says only that it failed."""
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["error"]
    text = outcome.result["error"] + outcome.stderr
    assert all(word in text for word in words), text
    assert outcome.result["live"] == {}


def test_a_device_without_room_is_an_error(converted: Callable[..., str]) -> None:
    model = converted("single", activation_format="mxfp4")
    outcome = start(refused, model, 20_000, HIPSIM_MEMORY=str(4 << 20))
    assert_refused(outcome, ["memory of GPU 0", "hipErrorOutOfMemory"])


def test_an_output_of_more_than_32_bits_of_elements_is_refused(tmp_path: Path) -> None:
    """4195329 x 1024 floats: 16 GiB, and 4 MB of them beyond, which is what a product of 32 bits would ask for."""
    case = oracle.random_case(np.random.default_rng(0), 1024, 1)
    onnx.save(op_model.model(case, dims=("M",)), tmp_path / "m.onnx")
    rows = 2**22 + 1025
    outcome = start(refused, str(tmp_path / "m.onnx"), rows, HIPSIM_MEMORY=str(1 << 28))
    assert_refused(outcome, ["memory of GPU 0", "hipErrorOutOfMemory"])
