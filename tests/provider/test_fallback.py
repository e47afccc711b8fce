"""Machines where no GPU can be used: the CPU with one clear warning for "auto", a clear error for "gpu"."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hipsim import harness
from mxort.runtime import op_models
from mxort.runtime.op_models import MatMulMXFP4
from provider import scenarios
from provider.worker import HIP_LIBRARY, environment, worker

CPU = "CPUExecutionProvider"
HIP_API = Path(__file__).parents[2] / "ep" / "device" / "hip_api.h"


@pytest.fixture(scope="module")
def problem() -> tuple[MatMulMXFP4, np.ndarray]:
    rng = np.random.default_rng(0)
    node = MatMulMXFP4(*op_models.random_mxfp4(64, 24, rng), K=64, activation_format="mxfp4")
    return node, rng.standard_normal((3, 64), dtype=np.float32)


def no_library(folder: Path) -> dict[str, str]:
    return {HIP_LIBRARY: str(folder / "libamdhip64.so.7")}


def not_a_runtime(folder: Path) -> dict[str, str]:
    (folder / "libamdhip64.so.7").write_text("nothing")
    return no_library(folder)


def count_fails(error: int) -> dict[str, str]:
    return environment("gfx950", HIPSIM_FAIL=",".join(f"hipGetDeviceCount:{n}={error}" for n in range(1, 20)))


def no_device(_: Path) -> dict[str, str]:
    return count_fails(100)  # hipErrorNoDevice


def failing_driver(_: Path) -> dict[str, str]:
    return count_fails(3)  # hipErrorNotInitialized


def old_runtime(folder: Path) -> dict[str, str]:
    """A runtime that says it is HIP 5.7."""
    return runtime_of("int hipRuntimeGetVersion(int* v) { *v = 50700000; return 0; }\n", folder)


def runtime_of(code: str, folder: Path) -> dict[str, str]:
    source = folder / "runtime.c"
    source.write_text(code)
    library = folder / "libamdhip64.so.7"
    harness._run("g++", "-x", "c", "-shared", "-fPIC", str(source), "-o", str(library))
    return no_library(folder)


def incomplete_runtime(folder: Path) -> dict[str, str]:
    """A runtime of the right version without one of the functions that are used."""
    functions = ["hipGetErrorName", *re.findall(r"F\((hip\w+),", HIP_API.read_text())]
    functions.remove("hipModuleLaunchKernel")
    bodies = [
        f"int {f}(int* v) {{ {'*v = 70000000; ' if 'Version' in f else ''}return 0; }}\n" for f in functions
    ]
    return runtime_of("".join(bodies), folder)


def wrong_architecture(_: Path) -> dict[str, str]:
    return environment("gfx90a")


MACHINES = {
    no_library: "libamdhip64",
    not_a_runtime: "libamdhip64",
    no_device: "no GPU",
    failing_driver: "hipGetDeviceCount",
    old_runtime: "5.7",
    incomplete_runtime: "hipModuleLaunchKernel",
    wrong_architecture: "gfx90a",
}


@pytest.mark.parametrize(("machine", "reason"), MACHINES.items(), ids=lambda m: getattr(m, "__name__", ""))
def test_auto_warns_once_and_gpu_fails(
    machine: Any, reason: str, problem: tuple[MatMulMXFP4, np.ndarray], tmp_path: Path
) -> None:
    node, a = problem
    with worker(machine(tmp_path)) as run:
        result = run(scenarios.run, node.model(), [{"A": a}], "auto")
        error = run(scenarios.fails, node.model(), [], "gpu")
    (warning,) = result.warnings
    assert warning.startswith("mxort runs on the CPU: ")
    assert reason in warning
    assert "\n" not in warning
    assert result.providers_of("MatMulMXFP4") == {CPU}
    assert op_models.relative_rms(result.outputs[0][0], node.expected(a)) <= node.error_bound
    assert error.startswith("MxortError: device 'gpu' cannot be used: ")
    assert reason in error
    assert "\n" not in error


def test_asking_for_the_cpu_touches_no_gpu(problem: tuple[MatMulMXFP4, np.ndarray], tmp_path: Path) -> None:
    """Not even to look for one: a broken driver may hang."""
    node, a = problem
    with worker(failing_driver(tmp_path)) as run:
        result = run(scenarios.run, node.model(), [{"A": a}], "cpu")
        assert result.warnings == []
        assert run(scenarios.calls) == {}
