"""The CPU as a device of the provider: the operators for a program that can name providers only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import CHILD, MARK, run

import op_model
import oracle
from hipsim import harness

ROOT = Path(__file__).parents[2]
LATER = ["", *(path.name for path in sorted((ROOT / "build" / "ort").glob("1.*")) if path.name != "1.22.1")]
"""onnxruntime of the tests, and others that take plugin providers."""


def on_the_host(model: str) -> dict[str, Any]:
    """A model of one node, without the operator's function, on the provider's CPU device and on all that it has."""
    import gpu
    import numpy as np
    import onnxruntime as ort

    x = np.random.default_rng(1).standard_normal((1, 3, 96), dtype=np.float32)
    results, launches = [], []
    with gpu.registered():
        kinds = [each.device.type.name for each in ort.get_ep_devices() if each.ep_name == gpu.EP]
        for devices in ([gpu.devices(kind="CPU")[0]], [*gpu.devices(kind="CPU"), *gpu.devices()]):
            options = ort.SessionOptions()
            options.add_provider_for_devices(devices, {"self_check": "0"})
            session = ort.InferenceSession(model, options)
            results.append(session.run(None, {"A": x})[0].tolist())
            if "GPU" in kinds:
                launches.append(json.loads(harness.runtime().hipsim_calls()).get("hipModuleLaunchKernel", 0))
            assert session.get_providers()[0] == gpu.EP
            del session
    return {"kinds": kinds, "y": results, "launches": launches, "version": ort.__version__}


@pytest.fixture(scope="module")
def case() -> oracle.Case:
    return oracle.random_case(np.random.default_rng(0), 40, 96, activation_format="mxfp4")


@pytest.fixture(scope="module")
def model(case: oracle.Case, tmp_path_factory: pytest.TempPathFactory) -> str:
    proto = op_model.model(case)
    del proto.functions[:]
    path = tmp_path_factory.mktemp("host") / "node.onnx"
    path.write_bytes(proto.SerializeToString())
    return str(path)


def check(result: dict[str, Any], case: oracle.Case) -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 96), dtype=np.float32)[0]
    for y in result["y"]:
        oracle.assert_close(case, x, np.asarray(y, np.float32)[0], "of a provider's device")


@pytest.mark.parametrize("release", LATER)
def test_without_a_gpu_the_operators_are_there(model: str, case: oracle.Case, release: str) -> None:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("HIPSIM_", "MXORT_HIP"))}
    variables["MXORT_HIP_LIBRARY"] = "/nowhere/libamdhip64.so"
    if release:
        variables["PYTHONPATH"] = str(ROOT / "build" / "ort" / release)
    command = [sys.executable, str(CHILD), __file__, on_the_host.__name__, json.dumps([model])]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.split(MARK)[1])
    assert result["kinds"] == ["CPU"]
    assert not release or result["version"] == release
    check(result, case)


def test_gpus_come_first_and_are_taken_first(model: str, case: oracle.Case) -> None:
    result = run(on_the_host, model, HIPSIM_DEVICES="gfx950:2")
    assert result["kinds"] == ["GPU", "GPU", "CPU"]
    on_the_cpu, with_a_gpu = result["launches"]
    assert on_the_cpu == 0 < with_a_gpu
    check(result, case)
