"""A simulated machine and operators on it, for the child processes of these tests."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
from gpu_oracle import Problem
from numpy.typing import NDArray

from hipsim import harness
from mxort import _native

DTYPES = {"float": "float32", "float16": "float16", "bfloat16": "bfloat16"}
ALIVE = ("allocations", "modules", "streams", "events", "graphs")


def new_machine(devices: str = "gfx950", **options: Any) -> harness.Sim:
    return harness.Sim(devices=devices, threads=2, **options)


def assert_clean(sim: harness.Sim) -> None:
    """Nothing is alive on the machine: to be called when no node is left."""
    gc.collect()
    counters = sim.counters()
    assert not any(counters[what] for what in ALIVE), counters


def node(problem: Problem, **options: Any) -> Any:
    spec = problem.spec
    return _native.GpuMatMulMXFP4(
        problem.codes, problem.scales, problem.column_scale, problem.bias, K=spec.k, rotation=spec.rotation,
        activation_format=spec.activation_format, accuracy_level=spec.level, dtype=DTYPES[spec.dtype], **options,
    )  # fmt: skip


def operand(problem: Problem) -> NDArray[Any]:
    """A in numpy's own type."""
    return problem.a.view(ml_dtypes.bfloat16) if problem.spec.dtype == "bfloat16" else problem.a


def compute(problem: Problem, **options: Any) -> NDArray[np.float32]:
    return np.asarray(node(problem, **options)(operand(problem)), np.float32)
