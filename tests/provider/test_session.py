"""Sessions on the execution provider, end to end on simulated GPUs: results, placement, options, fallbacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

import op_model
import oracle
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
"""What the operator promises for activations as they are, relative RMS; the GPU's two FP6 terms keep a quarter of it."""


@pytest.fixture(scope="module", params=["gfx950", "gfx942"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    with worker(environment(request.param)) as run:
        yield run


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
def test_equals_the_oracle_as_the_cpu_does(gpu: Any, activation_format: str, elem_type: int) -> None:
    """Dynamic rows: none, fewer and more than a skinny kernel takes; K and N that fill no tile."""
    rng = np.random.default_rng(elem_type)
    case = random_case(rng, 72, 200, activation_format=activation_format)
    dtype = DTYPES[elem_type]
    inputs = [rng.standard_normal((1, m, 200)).astype(dtype) for m in (3, 0, 40, 1)]
    outside = np.float32 if dtype is ml_dtypes.bfloat16 else dtype
    feeds = [{"A": a.astype(outside)} for a in inputs]
    for device, provider in (("gpu", EP), ("cpu", CPU)):
        result = gpu(scenarios.run, model(case, elem_type), feeds, device)
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
