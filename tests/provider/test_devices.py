"""Choosing among devices, what runs where, and the sample: with simulated GPUs, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mxort
from mxort.runtime import op_models
from provider import scenarios
from provider.worker import environment, worker
from tiny_models import mlp

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    mxort.convert(mlp(folder / "mlp.onnx"), folder / "mlp.mxfp4.onnx", fuse=False)
    return folder / "mlp.mxfp4.onnx"


def program(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment() | variables, capture_output=True, text=True)


def test_gpus_by_number() -> None:
    rng = np.random.default_rng(0)
    node = op_models.MatMulMXFP4(*op_models.random_mxfp4(64, 24, rng), K=64, activation_format="mxfp4")
    a = rng.standard_normal((3, 64), dtype=np.float32)
    with worker(environment("gfx950,gfx942,gfx90a")) as run:
        found = run(scenarios.devices)
        assert [d.name for d in found] == ["cpu", "gpu:0", "gpu:1", "gpu:2"]
        assert [d.arch for d in found[1:]] == ["gfx950", "gfx942", "gfx90a"]
        assert [bool(d.why_not) for d in found] == [False, False, False, True]
        for device in ("gpu", "gpu:0", "gpu:1", "auto"):
            result = run(scenarios.run, node.model(), [{"A": a}], device)
            assert result.providers_of("MatMulMXFP4") == {scenarios.EP}
            assert result.warnings == []
            assert op_models.relative_rms(result.outputs[0][0], node.expected(a)) <= node.error_bound
        assert "gfx90a" in run(scenarios.fails, node.model(), [], "gpu:2")
        error = run(scenarios.fails, node.model(), [], "gpu:3")
        assert (
            error == "MxortError: device 'gpu:3' cannot be used: there is no gpu:3, only gpu:0, gpu:1, gpu:2"
        )
        for text in ("gpus", "gpu:", "gpu:-1", "GPU", ""):
            error = run(scenarios.fails, node.model(), [], text)
            assert error == f"MxortError: device: got {text!r}, expected auto, cpu, gpu or gpu:N"


def test_auto_opens_on_the_cpu_where_the_gpu_has_no_room(converted: Path) -> None:
    feed = {"x": np.ones((2, 64), np.float32)}
    with worker(environment()) as run:
        result = run(scenarios.run, str(converted), [feed], "auto", device_options={"memory_limit": 4096})
        expected = run(scenarios.run, str(converted), [feed], "cpu").outputs
        error = run(scenarios.fails, str(converted), [], "gpu", device_options={"memory_limit": 4096})
    assert result.providers_of("MatMulMXFP4") == {"CPUExecutionProvider"}
    np.testing.assert_array_equal(result.outputs[0][0], expected[0][0])
    (warning,) = result.warnings
    for text in (warning, error):
        assert "limit is 4096" in text


@pytest.mark.parametrize(("device", "provider"), [("gpu", scenarios.EP), ("cpu", "CPUExecutionProvider")])
def test_placement(converted: Path, device: str, provider: str) -> None:
    command = ["-m", "mxort", "inspect", converted, "--placement", "--device", device]
    shown = json.loads(program(*command, "--json").stdout)
    assert [n["provider"] for n in shown["nodes"] if n["op_type"] == "MatMulMXFP4"] == [provider] * 2
    assert {n["provider"] for n in shown["nodes"] if n["op_type"] == "Relu"} == {provider}
    table = program(*command)
    assert table.returncode == 0, table.stderr
    row = next(line for line in table.stdout.splitlines() if "MatMulMXFP4" in line)
    assert provider in row
    assert "2" in row


def test_placement_of_what_the_converter_makes_by_default(tmp_path: Path) -> None:
    mxort.convert(mlp(tmp_path / "mlp.onnx"), tmp_path / "fused.onnx")
    shown = json.loads(
        program(
            "-m", "mxort", "inspect", tmp_path / "fused.onnx", "--placement", "--device", "gpu", "--json"
        ).stdout
    )
    assert {n["op_type"]: n["provider"] for n in shown["nodes"]} == {
        "FusedMatMulMXFP4": scenarios.EP,
        "MatMulMXFP4": scenarios.EP,
    }


def test_placement_on_a_gpu_that_is_not_there(converted: Path) -> None:
    command = ["-m", "mxort", "inspect", converted, "--placement", "--device", "gpu:7"]
    failed = program(*command)
    assert failed.returncode == 2
    assert failed.stderr.startswith("mxort: error: device 'gpu:7' cannot be used: ")
    assert len(failed.stderr.splitlines()) == 1


def test_sample(converted: Path) -> None:
    done = program(ROOT / "samples" / "gpu.py", converted)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert scenarios.EP in first
    assert [line.split()[-1] for line in others] == ["same", "same"]


@pytest.mark.e2e
def test_the_oldest_onnxruntime_with_providers(converted: Path) -> None:
    """Static shapes: there it allocates activations without a stream (ep/provider/memory.h) and frees them before the
    run's work is done, which must then be waited for. Another thread would have to run in that instant to be hurt, so
    the wait itself is asserted."""
    (release,) = (ROOT / "build" / "ort").glob("1.24.*")
    done = program(Path(__file__).with_name("old_runtime.py"), converted, PYTHONPATH=str(release))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["version"] == release.name
    assert result["providers"][0] == scenarios.EP
    assert result["same"]
    assert result["waits"] > 0
