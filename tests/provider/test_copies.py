"""Where tensors live: device memory from end to end, alone and beside another provider on the same device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from simulated import run

import mxort
import oracle

MXORT, TOY = "MxortExecutionProvider", "ToyExecutionProvider"
RUNS = 3


def bound(model: str, providers: list[str], toy: str, operators: str = "all") -> dict[str, Any]:
    """Runs with input and output bound to device memory, and what they cost."""
    import gpu
    import numpy as np
    import onnxruntime as ort

    config = {"session.disable_cpu_ep_fallback": "1"}
    with gpu.registered(toy):
        opened = gpu.session(model, providers=providers, config=config, options={"operators": operators})
        placement = gpu.placement(opened)
        (x,) = gpu.feeds(opened).values()
        (expected,) = opened.run(None, {"x": x})
        given = ort.OrtValue.ortvalue_from_numpy(x, "gpu", 0, gpu.VENDOR)
        taken = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(expected), "gpu", 0, gpu.VENDOR)
        binding = opened.io_binding()
        binding.bind_ortvalue_input("x", given)
        binding.bind_ortvalue_output("y", taken)
        opened.run_with_iobinding(binding)
        before = gpu.sim.counters()
        for _ in range(RUNS):
            opened.run_with_iobinding(binding)
        after = gpu.sim.counters()
        equal = bool(np.array_equal(taken.numpy(), expected))
        del opened, given, taken, binding
    spent = {name: after[name] - before[name] for name in after}
    return {
        "placement": placement,
        "spent": spent,
        "equal": equal,
        "y": expected.tolist(),
        "live": gpu.live(),
    }


def assert_nothing_is_copied(result: dict[str, Any]) -> None:
    spent = result["spent"]
    assert [name for name in spent if name.startswith(("copies", "bytes")) and spent[name]] == []
    assert spent["allocations"] == 0  # what a run needs comes out of the arena
    assert result["equal"]
    assert result["live"] == {}


def test_device_bound_runs_copy_nothing(converted: Callable[..., str]) -> None:
    result = run(bound, converted("single", activation_format="mxfp4"), [MXORT], "")
    assert result["placement"] == {MXORT: ["MatMulMXFP4"]}
    assert_nothing_is_copied(result)
    assert result["spent"]["launches"] == RUNS


def test_a_chain_of_operators_stays_on_the_device(converted: Callable[..., str]) -> None:
    result = run(bound, converted("chain", activation_format="mxfp4"), [MXORT], "")
    assert result["placement"] == {MXORT: ["Add", "MatMulMXFP4", "MatMulMXFP4", "MatMulMXFP4", "Mul", "Relu"]}
    assert_nothing_is_copied(result)
    assert result["spent"]["launches"] == (3 + 2) * RUNS  # Mul and Relu are one


@pytest.mark.parametrize("order", [[MXORT, TOY], [TOY, MXORT]], ids=lambda names: names[0][:5])
def test_nodes_of_another_provider_share_memory_and_stream(
    order: list[str], converted: Callable[..., str], toy: dict[str, str]
) -> None:
    """One stream serves both; whose it is depends on the order. Work on two streams without an event between them
    would read what is not yet written: the simulator runs a stream only when something waits for it."""
    model = converted("chain", accuracy_level=1)
    result = run(bound, model, order, toy["TOY_EP"], "mx", **toy)
    assert result["placement"] == {MXORT: ["MatMulMXFP4"] * 3, TOY: ["Add", "Mul", "Relu"]}
    assert_nothing_is_copied(result)
    assert result["spent"]["launches"] == (3 + 3) * RUNS
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)  # as gpu.feeds
    on_cpu = mxort.InferenceSession(model, providers=["CPUExecutionProvider"])
    # Three products of relative error 1e-6 on either side.
    assert oracle.relative_rms(np.array(result["y"]), on_cpu.run(None, {"x": x})[0].astype(np.float64)) < 1e-5


def beside_another_device(model: str, toy: str) -> dict[str, Any]:
    """Our node on GPU 1 after the other provider's on GPU 0."""
    import gpu

    error = ""
    with gpu.registered(toy):
        opened = gpu.session(model, providers=[gpu.TOY, gpu.EP], device=1)
        try:
            opened.run(None, gpu.feeds(opened))
        except Exception as refused:
            error = gpu.message(refused)
        opened = None
    return {"error": error, "live": gpu.live()}


def test_memory_of_another_device_is_refused(converted: Callable[..., str], toy: dict[str, str]) -> None:
    """ONNX Runtime hands it over without a copy: the vendor is the same."""
    model = converted("scaled")
    result = run(beside_another_device, model, toy["TOY_EP"], **toy, HIPSIM_DEVICES="gfx950:2")
    assert "is in memory of GPU 0, expected GPU 1" in result["error"]
    assert result["live"] == {}
