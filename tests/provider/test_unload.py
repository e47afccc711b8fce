"""The end of sessions, environment, library and process, in any order."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from simulated import LIBRARY, environment, start

LIVE = ("allocations", "modules", "streams", "events", "graphs")

ORDERS = {
    "12tue": "everything in order",
    "t21u": "the environment is left to the process",
    "12tu": "",
    "1t2ud": "the library is closed by hand",
    "12t": "the process ends with the library registered",
    "1": "the process ends with a session",
    "": "the process ends with everything",
    "12te": "the environment takes the library with it",
    "12ut": "a tensor outlives the registration",
    "u1n2te": "sessions outlive the registration",
    "12tur12tue": "once more in the same process",
    "12tudr12tue": "once more after the library was closed",
}


@pytest.mark.parametrize("steps", ORDERS)
def test_orders(steps: str, converted: Callable[..., str], programs: dict[str, str]) -> None:
    """A program without Python. Where it is built with sanitizers, they look for leaks too."""
    (runtime,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    command = [
        programs["test_unload"],
        str(runtime),
        LIBRARY,
        converted("single", activation_format="mxfp4"),
        steps,
    ]
    done = subprocess.run(
        command,
        env=environment(ASAN_OPTIONS=None, LD_PRELOAD=None),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stderr[-4000:]}"
    state, _, counters = done.stdout.partition(" ")
    if state == "released":
        assert [name for name in LIVE if json.loads(counters)[name]] == []


def leaves(model: str, order: str) -> dict[str, Any]:
    """A Python program that drops its objects in some order, or not at all."""
    import gpu
    import numpy as np
    import onnxruntime as ort

    ort.register_execution_provider_library(gpu.REGISTRATION, LIBRARY)
    kept: dict[str, Any] = {"first": gpu.session(model), "second": gpu.session(model)}
    x = gpu.feeds(kept["first"])
    expected = kept["first"].run(None, x)[0]
    kept["value"] = ort.OrtValue.ortvalue_from_numpy(x["x"], "gpu", 0, gpu.VENDOR)
    kept["binding"] = kept["second"].io_binding()
    kept["binding"].bind_ortvalue_input("x", kept["value"])
    kept["result"] = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(expected), "gpu", 0, gpu.VENDOR)
    kept["binding"].bind_ortvalue_output("y", kept["result"])
    kept["second"].run_with_iobinding(kept["binding"])
    for step in order.split():
        if step == "unregister":
            ort.unregister_execution_provider_library(gpu.REGISTRATION)
        elif step == "run":
            equal = np.array_equal(kept["second"].run(None, x)[0], expected)
            assert equal
        else:
            del kept[step]
    globals()["kept_to_the_end"] = kept
    return gpu.live()


@pytest.mark.parametrize(
    "order",
    [
        "value result binding first second unregister",
        "first run second binding value result unregister",
        "binding value second first",
        "first second",
        "first binding value run",
        "",
    ],
)
def test_python_programs_end_well(order: str, converted: Callable[..., str]) -> None:
    outcome = start(leaves, converted("single", activation_format="mxfp4"), order)
    assert (outcome.code, outcome.stderr) == (0, "")
    if order.endswith("unregister"):
        assert outcome.result == {}
