"""Sessions on the execution provider, end to end on simulated GPUs: results, placement, options, fallbacks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import op_model
import oracle
from mxort.runtime import op_models
from oracle import Case, random_case
from provider import scenarios
from provider.worker import environment, worker

EP = scenarios.EP
CPU = "CPUExecutionProvider"
FORMATS = ["none", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4"]
DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}
LEVEL_3_ERROR = 3e-3
"""What the operator promises for activations as they are, relative RMS."""


@pytest.fixture(scope="module")
def gfx950() -> Iterator[Any]:
    with worker(environment("gfx950")) as run:
        yield run


def check(case: Case, a: np.ndarray, y: np.ndarray) -> None:
    """Y [..., N] is within the operator's bounds of the double-precision result; without a format, by its RMS."""
    rows = a.reshape(-1, case.K)
    got = y.astype(rows.dtype).reshape(len(rows), case.N)
    if case.activation_format != "none":
        oracle.assert_close(case, rows, got, "execution provider")
    elif len(rows):
        exact, _ = oracle.evaluate(case, rows)
        output_rounding = oracle.OUTPUT_EPSILON[str(rows.dtype)]
        assert oracle.relative_rms(got, exact) <= LEVEL_3_ERROR + output_rounding


def model(case: Case, elem_type: int = TensorProto.FLOAT) -> bytes:
    return bytes(op_model.model(case, elem_type=elem_type).SerializeToString())


@pytest.mark.parametrize("elem_type", DTYPES, ids=lambda t: np.dtype(DTYPES[t]).name)
@pytest.mark.parametrize("activation_format", FORMATS)
def test_equals_the_oracle_as_the_cpu_does(gfx950: Any, activation_format: str, elem_type: int) -> None:
    """Dynamic rows: none, fewer and more than a skinny kernel takes; K and N that fill no tile."""
    rng = np.random.default_rng(elem_type)
    case = random_case(rng, 72, 200, activation_format=activation_format)
    dtype = DTYPES[elem_type]
    inputs = [rng.standard_normal((1, m, 200)).astype(dtype) for m in (3, 0, 40, 1)]
    outside = np.float32 if dtype is ml_dtypes.bfloat16 else dtype
    feeds = [{"A": a.astype(outside)} for a in inputs]
    for device, provider in (("gpu", EP), ("cpu", CPU)):
        result = gfx950(scenarios.run, model(case, elem_type), feeds, device)
        assert result.providers_of("MatMulMXFP4") == {provider}
        for a, (y,) in zip(inputs, result.outputs, strict=True):
            assert y.shape == (*a.shape[:-1], 72)
            check(case, a, y)


@pytest.mark.parametrize("rotation", [32, 128])
def test_rotation(gfx950: Any, rotation: int) -> None:
    rng = np.random.default_rng(rotation)
    case = random_case(rng, 40, 256, rotation, activation_format="mxfp6_e2m3")
    a = rng.standard_normal((1, 5, 256)).astype(np.float32)
    check(case, a, gfx950(scenarios.run, model(case), [{"A": a}]).outputs[0][0])


def test_without_prepacking(gfx950: Any) -> None:
    rng = np.random.default_rng(2)
    case = random_case(rng, 33, 100, activation_format="mxfp4")
    a = rng.standard_normal((1, 5, 100)).astype(np.float32)
    config = {"session.disable_prepacking": "1"}
    result = gfx950(scenarios.run, model(case), [{"A": a}, {"A": 2 * a}], config=config)
    assert result.providers_of("MatMulMXFP4") == {EP}
    check(case, a, result.outputs[0][0])
    check(case, 2 * a, result.outputs[1][0])


def test_weights_of_an_outer_graph(gfx950: Any) -> None:
    """A branch of If uses constants of the main graph: they cannot be read before the first run."""
    rng = np.random.default_rng(3)
    case = random_case(rng, 48, 64, activation_format="mxfp8_e4m3")
    proto = op_model.model(case)
    branch = helper.make_graph(list(proto.graph.node), "branch", [], list(proto.graph.output))
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["Y_else"], value_float=0.0)],
        "other",
        [],
        [helper.make_tensor_value_info("Y_else", TensorProto.FLOAT, None)],
    )
    chosen = helper.make_node("If", ["condition"], ["Y"], then_branch=branch, else_branch=other)
    del proto.graph.node[:]
    branch.node[-1].output[0] = branch.output[0].name = "Y_then"
    proto.graph.node.append(chosen)
    proto.graph.input.append(condition)
    a = rng.standard_normal((1, 4, 64)).astype(np.float32)
    feed = {"A": a, "condition": np.array(True)}
    result = gfx950(scenarios.run, proto.SerializeToString(), [feed, feed])
    assert result.providers_of("MatMulMXFP4") == {EP}
    for outputs in result.outputs:
        check(case, a, outputs[0])


def log_of(code: str, model: onnx.ModelProto, folder: Path, severity: int) -> str:
    """What a process on a simulated GPU logs that has a registered `options` and the model's `path`."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    start = "import sys, numpy as np, onnxruntime as ort, mxort\npath = sys.argv[1]\n"
    code = start + f"options = ort.SessionOptions()\noptions.log_severity_level = {severity}\n" + code
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, env=os.environ | environment(), capture_output=True, text=True).stderr


def test_the_reason_is_logged(tmp_path: Path) -> None:
    case = random_case(np.random.default_rng(5), 8, 32)
    proto = op_model.model(case)
    # The initializer is a default value then, no constant.
    proto.graph.input.append(helper.make_tensor_value_info("B", TensorProto.UINT8, case.codes.shape))
    log = log_of("mxort.InferenceSession(path, options, device='gpu')", proto, tmp_path, severity=0)
    assert "MatMulMXFP4 'node' is left to the CPU: B is no constant" in log


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("memory_limi", "5", "provider option memory_limi: got '5', expected one of the options device_id, "),
        ("memory_limit", "5GB", "provider option memory_limit: got '5GB', expected bytes"),
        ("memory_limit", "-1", "provider option memory_limit: got '-1', expected bytes"),
        ("memory_limit", "20000000000000000000", "provider option memory_limit: got '2"),
        ("self_check", "maybe", "provider option self_check: got 'maybe', expected 0 or 1"),
        ("device_id", "1", "provider option device_id: got '1', expected 0"),
        ("device_id", "-1", "provider option device_id: got '-1', expected the number of a device"),
        ("device_id", "", "provider option device_id: got '', expected the number of a device"),
    ],
)
def test_ill_options(gfx950: Any, option: str, value: str, message: str) -> None:
    case = random_case(np.random.default_rng(6), 8, 32)
    error = gfx950(scenarios.fails, model(case), [], device_options={option: value})
    assert message in error
    assert len(error.splitlines()) == 1


def test_memory_limit(gfx950: Any, tmp_path: Path) -> None:
    """What does not fit is refused, when the weights are loaded or in the run; what fits still runs."""
    rng = np.random.default_rng(7)
    case = random_case(rng, 64, 128, activation_format="mxfp4")
    error = gfx950(scenarios.fails, model(case), [], device_options={"memory_limit": 1000})
    assert re.search(r"MatMulMXFP4 'node': memory of GPU 0: .* limit is 1000", error), error
    options = {"memory_limit": 300_000}
    a = rng.standard_normal((1, 1, 128)).astype(np.float32)
    (y,) = gfx950(scenarios.run, model(case), [{"A": a}], device_options=options).outputs[0]
    check(case, a, y)
    code = (
        f"session = mxort.InferenceSession(path, options, device='gpu', device_options={options})\n"
        "session.run(None, {'A': np.zeros((1, 4096, 128), np.float32)})\n"
    )
    log = log_of(code, op_model.model(case), tmp_path, severity=3)
    assert "got a request of 2097152 bytes" in log
    assert "limit is 300000" in log
    assert "onnxruntime_pybind11_state" in log.splitlines()[-1]  # onnxruntime's exception, no crash


def test_self_check_off(gfx950: Any) -> None:
    rng = np.random.default_rng(8)
    case = random_case(rng, 16, 64, activation_format="mxfp4")
    a = rng.standard_normal((1, 2, 64)).astype(np.float32)
    result = gfx950(scenarios.run, model(case), [{"A": a}], device_options={"self_check": False})
    check(case, a, result.outputs[0][0])


def test_profile(gfx950: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    case = random_case(rng, 16, 64, activation_format="mxfp4")
    a = rng.standard_normal((1, 3, 64)).astype(np.float32)
    events = gfx950(scenarios.profiled, model(case), {"A": a}, str(tmp_path / "profile"))
    assert [event["args"]["rows"] for event in events] == ["3", "3"]
    assert {event["name"] for event in events} == {"gemm_fp4_16x16"}
    assert {event["args"]["node"] for event in events} == {"MatMulMXFP4 'node'"}
    assert all(event["dur"] >= 0 for event in events)
    assert events[0]["ts"] < events[1]["ts"]


def test_graph_capture(gfx950: Any) -> None:
    """Two runs capture, the others replay: the right result for what the bound input holds then, and nothing but one
    launch of a graph each."""
    rng = np.random.default_rng(10)
    problem = op_models.MatMulMXFP4(*op_models.random_mxfp4(96, 40, rng), K=96, activation_format="mxfp4")
    inputs = [rng.standard_normal((5, 96), dtype=np.float32) for _ in range(5)]
    results, made = gfx950(scenarios.replayed, problem.model(), inputs, 40)
    for a, y in zip(inputs, results, strict=True):
        assert op_models.relative_rms(y, problem.expected(a)) <= problem.error_bound
    assert made["allocations"] == 0
