"""One matrix product on a GPU, by the device's own clock, for each activation format."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mxort.errors import MxortError
from mxort.evaluation.turns import Timing, summarize
from mxort.formats import ACTIVATION_FORMATS
from mxort.runtime.op_models import MatMulMXFP4, random_mxfp4, relative_rms

if TYPE_CHECKING:
    from mxort.progress import Progress

CHECKED_ROWS = 16
"""Rows of A computed in float64 too."""

FLOAT16_ROUNDING = 2.0**-11
"""Relative: what rounding Y to its type may cost."""

SIMULATED = "simulated"
"""In the name of a device that tests simulate."""


@dataclass(frozen=True)
class GpuResult:
    """One activation format at one shape, float16 A and Y on the device.

    ``bytes`` are those that must be moved at the least: A, the weights and Y once each. ``error`` is the relative
    RMS of the first rows against float64.
    """

    M: int
    K: int
    N: int
    activation_format: str
    kernel: str
    timing: Timing
    tflop_per_s: float
    gb_per_s: float
    error: float


@dataclass(frozen=True)
class GpuBench:
    """Result of :func:`bench_gpu`. Of a ``simulated`` device the times mean nothing."""

    device: str
    arch: str
    hip: str
    simulated: bool
    rows: tuple[GpuResult, ...]
    wrong: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return asdict(self)


def bench_gpu(
    shapes: Sequence[tuple[int, int, int]],
    ordinal: int = 0,
    *,
    runs: int = 50,
    warmup: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> GpuBench:
    """Times every activation format at each (M, K, N) on GPU ``ordinal``: A, weights and Y lie on the device, and the
    time of a run is what the device's events say.

    Every result is compared with float64 first; formats that are wrong are listed in ``wrong``. Raises MxortError
    where the GPU cannot be used.
    """
    native = importlib.import_module("mxort._native")
    report = progress or (lambda what, fraction: None)
    rows: list[GpuResult] = []
    wrong: list[str] = []
    cases = [(shape, fmt) for shape in shapes for fmt in ACTIVATION_FORMATS]
    try:
        gpus = native.devices()
        if not 0 <= ordinal < len(gpus):
            raise MxortError(f"GPU {ordinal}: the HIP runtime lists {len(gpus)}")
        gpu = gpus[ordinal]
        for index, ((m, k, n), fmt) in enumerate(cases):
            report(f"{m} x {k} x {n} {fmt}", index / len(cases))
            rng = np.random.default_rng([seed, k, n])
            problem = MatMulMXFP4(*random_mxfp4(k, n, rng), k, 1, fmt)
            a = rng.standard_normal((m, k), dtype=np.float32).astype(np.float16)
            node = problem.on_gpu(ordinal, "float16")
            checked = a[:CHECKED_ROWS]
            error = relative_rms(node(a)[:CHECKED_ROWS], problem.expected(checked.astype(np.float32)))
            if not error <= problem.error_bound + FLOAT16_ROUNDING:  # not >: a NaN is wrong too
                wrong.append(f"{fmt} at {m} x {k} x {n}: relative error {error:.1e}")
                continue
            milliseconds = np.asarray(node.time(a, warmup + runs), np.float64)[warmup:]
            timing = summarize((milliseconds / 1e3).tolist(), (milliseconds / 1e3).tolist())
            moved = problem.codes.nbytes + problem.scales.nbytes + 2 * m * (k + n)
            seconds = timing.p50_ms / 1e3
            rows.append(
                GpuResult(
                    *(m, k, n, fmt, node.kernel_for(m), timing),
                    tflop_per_s=2 * m * k * n / seconds / 1e12,
                    gb_per_s=moved / seconds / 1e9,
                    error=error,
                )
            )
    except native.DeviceError as error:
        raise MxortError(str(error)) from error
    hip = native.hip_runtime()
    return GpuBench(
        gpu["name"],
        gpu["arch"],
        f"{hip['library']} {hip['version']}",
        SIMULATED in gpu["name"],
        tuple(rows),
        tuple(wrong),
    )
