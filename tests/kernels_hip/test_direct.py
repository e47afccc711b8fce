"""The kernels that prepare A themselves, with what follows the product: every format, type, activation and gate."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from gpu_oracle import FLOAT16_TINY, FP32_EPSILON, OUTPUT_EPSILON, Problem
from numpy.typing import NDArray
from test_gemm import NATIVE, operands

import device
from device import Spec

ROWS = [row for row in device.gemm_rows() if row["direct"]]
KERNELS = [
    pytest.param(row, arch, id=f"{arch}-{row['name']}")
    for row in ROWS
    for arch in ([row["arch"]] if row["arch"] else device.ARCHITECTURES)
]
WEIGHTS = ["mxfp4", "mxint8", "mxfp8_e4m3"]  # in the order of WeightCode
SHAPES = [(5, 384, 76), (1, 93, 1), (3, 32 * 9, 75), (1, 128 * 67, 64 + 24)]
"""Whole steps; rows that no wide load takes; half a step, and columns that fill no fragment; more steps than are in
flight at once."""

ERF = np.vectorize(math.erf)
FUNCTIONS: dict[int, Any] = {
    0: lambda x: x,
    1: lambda x: np.maximum(x, 0),
    2: lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
    3: lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    4: lambda x: x / (1 + np.exp(-x)),
}
"""Follow -> the function in double."""


def formats_of(row: dict[str, Any], arch: str) -> list[tuple[str, int]]:
    if not row["weights"]:
        return list(operands(row, arch))
    return [("none", 1), ("none", 3), *((fmt, 3) for fmt in NATIVE.values())]


def problem(row: dict[str, Any], arch: str, shape: tuple[int, int, int], *rest: Any) -> Problem:
    """``rest``: type, format, level, rotation."""
    dtype, fmt, level, rotation = rest
    return Problem(Spec(*shape, dtype, fmt, rotation, level, arch, weights=WEIGHTS[row["weights"]]))


@pytest.mark.parametrize("row, arch", KERNELS)
def test_kernel_matches_numpy_and_every_instruction_runs(counting_machines, row, arch):
    machine, name = counting_machines(arch), row["name"]
    first, *others = formats_of(row, arch)
    for dtype in device.TYPES:
        for shape in SHAPES:
            given = problem(row, arch, shape, dtype, *first, 1)
            given.check(given.run(machine, name), name)
        for follow in FUNCTIONS:
            for gated in (0, 35):
                p = problem(row, arch, (3, 160, 128), dtype, *first, 32)
                check_followed(machine, name, p, follow, gated)
        for k in (93, 384, 1024):
            for number in range(len(NORMS)):
                check_normalised(machine, name, problem(row, arch, (3, k, 20), dtype, *first, 1), number)
    for fmt, level in (first, *others):
        for rotation in (32, 64, 128):
            given = problem(row, arch, (3, 384, 20), "float16", fmt, level, rotation)
            given.check(given.run(machine, name), name)
    assert machine.unexecuted("gemm_direct", name) == []


def check_followed(machine: device.Device, name: str, p: Problem, follow: int, gated: int) -> None:
    """Y = f(P), or f(gates) * values. Of every function a slope of at most 1.13; of the device's own eight units of the
    last place (math.h: two of the exponential or the error function, and what is made of it)."""
    p.column_scale *= np.float32(2 / p.exact(None)[0].std())  # where the functions bend
    got = machine.matmul(
        p.spec, p.a, p.codes, p.scales, p.column_scale, p.bias, name, follow=follow, gated=gated
    ).astype(np.float64)
    exact, magnitude = p.exact(device.plan(p.spec, name))
    error = (p.spec.k / 4 + 8) * FP32_EPSILON * magnitude
    function = FUNCTIONS[follow]
    want, allowed = function(exact), 1.13 * error
    allowed += 8 * FP32_EPSILON * (np.abs(want) + np.abs(exact)) * (follow > 1)
    if gated:
        columns = np.arange(gated)
        gates = columns // 32 * 64 + columns % 32
        values, of_values = exact[:, gates + 32], error[:, gates + 32]
        gate, of_gate = want[:, gates], allowed[:, gates]
        want = gate * values
        allowed = of_gate * np.abs(values) + np.abs(gate) * of_values + of_gate * of_values
    allowed = allowed + OUTPUT_EPSILON[p.spec.dtype] * np.abs(want) * 1.01
    allowed += FLOAT16_TINY if p.spec.dtype == "float16" else 0
    assert (np.abs(got - want) <= allowed).all(), (p.spec, name, follow, gated)


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_what_follows_other_kernels_and_every_instruction_runs(counting_machines, arch):
    """The same functions and gates by a kernel of their own (prepare.h: activate)."""
    machine, rng = counting_machines(arch), np.random.default_rng(12)
    p = np.concatenate([rng.uniform(-6, 6, (2, 2304)), np.full((1, 2304), 100), np.full((1, 2304), -100)])
    p = p.astype(np.float32)
    sent = machine.sim.to_device(p)
    for kind, dtype in enumerate(device.TYPES):
        for follow, function in FUNCTIONS.items():
            for gated in (0, 1):
                n = 1140
                y = machine.sim.empty((4, n), np.uint16 if dtype == "bfloat16" else device.TYPES[dtype])
                args = struct.pack("<QQQIIIiii", sent.ptr, y.ptr, 4, n, 2304, 3, gated, follow, kind)
                machine.module("prepare").launch("activate", (-(-n // 1024), 3), (256,), [args])
                columns = np.arange(n)
                at = columns // 32 * 64 + columns % 32 if gated else columns
                with np.errstate(over="ignore"):
                    want = function(p[:, at].astype(np.float64)) * (p[:, at + 32] if gated else 1)
                allowed = (16 * FP32_EPSILON + OUTPUT_EPSILON[dtype] * 1.01) * np.abs(want)
                allowed += 8 * FP32_EPSILON * np.abs(p[:, at + 32] if gated else 1) + FLOAT16_TINY
                assert (np.abs(device.from_bytes(y.numpy(), dtype) - want) <= allowed).all(), (
                    dtype,
                    follow,
                    gated,
                )
                y.free()
    assert machine.unexecuted_work("prepare", "activate") == []


NORMS: list[dict[str, Any]] = [
    {"rms": True, "scale": True},
    {"rms": True, "skip": 3, "scale": True, "stores": True},
    {"rms": False, "skip": 1, "bias": True, "scale": True, "shift": True, "stores": True},
    {"rms": False},
    {"rms": False, "skip": 3, "scale": True, "stores": True, "rounds": True},
]


def check_normalised(machine: device.Device, name: str, p: Problem, number: int) -> None:
    """The product of the normalised rows, which are what NumPy makes of them in double to within two units of the type
    and what else a float sum may do; the product then is compared for the rows as the device has them."""
    form, k, dtype = dict(NORMS[number]), p.spec.k, p.spec.dtype
    rng = np.random.default_rng([number, k])
    given: dict[str, NDArray[np.float64]] = {}
    for key, shape in (("skip", (form.get("skip"), k)), ("bias", k), ("scale", k), ("shift", k)):
        if form.get(key):
            values = device.to_bytes(rng.standard_normal(shape).astype(np.float32), dtype)
            form[key] = values
            given[key] = device.from_bytes(values, dtype).astype(np.float64)
    norm = device.Norm(**form)
    got = machine.matmul(p.spec, p.a, p.codes, p.scales, p.column_scale, p.bias, name, norm=norm)
    v = device.from_bytes(p.a, dtype).astype(np.float64)
    v = v + np.resize(given["skip"], v.shape) if "skip" in given else v
    v = v + given.get("bias", 0)
    if norm.rounds:  # the sum of two numbers of the type, in float as on the device
        v = device.from_bytes(device.to_bytes(v.astype(np.float32), dtype), dtype).astype(np.float64)
    mean = 0 if norm.rms else v.mean(1, keepdims=True)
    y = (v - mean) / np.sqrt(((v - mean) ** 2).mean(1, keepdims=True) + norm.epsilon)
    y = y * given.get("scale", 1) + given.get("shift", 0)
    if not norm.stores:
        again = device.Norm(**(form | {"stores": True}))
        machine.matmul(p.spec, p.a, p.codes, p.scales, p.column_scale, p.bias, name, norm=again)
        stored = again.results
    else:
        stored = norm.results
    of_type = OUTPUT_EPSILON[dtype]
    for key, want in (("sum", v), ("y", y)):
        # A row's moments are sums of k terms and some fifteen roundings; all of v's own size, which may cancel.
        allowed = 2 * of_type * np.abs(want) + (k / 64 + 16) * FP32_EPSILON * (np.abs(want) + np.abs(v).max())
        allowed = allowed + (FLOAT16_TINY if dtype == "float16" else 0)
        assert (np.abs(device.from_bytes(stored[key], dtype) - want) <= allowed).all(), (
            p.spec,
            name,
            number,
            key,
        )
    p.a = stored["y"]
    p.check(got, name)


@pytest.mark.parametrize(
    "kernel, fmt, level, k, most",
    [
        ("gemm_fp4_16x16", "mxfp4", 3, 512, 16),
        ("gemm_fp4_16x64", "mxfp4", 3, 14336, 8),  # 65,536 bytes over 448 blocks of 17
        ("gemm_e2m3_16x16", "none", 3, 4096, 7),  # over 128 blocks of two terms of 33
        ("gemm_bf16_16x64", "none", 1, 4096, 2),  # over 128 blocks of three terms of 64
    ],
)
def test_as_many_rows_as_fit(machines, kernel, fmt, level, k, most):
    """LDS holds them; more rows are another kernel's."""
    assert device.plan(Spec(most + 1, k, 16, "float", fmt, 32, level), kernel) is None
    p = Problem(Spec(most, k, 16, "float", fmt, 32, level))
    p.check(p.run(machines("gfx950"), kernel), kernel)


@pytest.mark.parametrize("dtype", device.TYPES)
@pytest.mark.parametrize("rotation", [1, 32, 64, 128])
@pytest.mark.parametrize("fmt", [f for f in device.FORMATS if f != "none"])
def test_operands_are_those_of_prepare(machines, fmt, rotation, dtype):
    """Weights that are the unit matrix give Y the operand itself: the same as behind ``prepare`` bit for bit."""
    p = Problem(Spec(3, 128, 128, dtype, fmt, rotation, 3))
    codes = np.zeros((128, 128), np.uint8)
    codes[np.diag_indices(128)] = 2  # 1.0 in E2M1
    p.codes, p.scales[:], p.column_scale[:], p.bias[:] = codes[:, ::2] | codes[:, 1::2] << 4, 127, 1, 0
    rows = [r["name"] for r in device.gemm_rows() if device.plan(p.spec, r["name"]) and r["skinny"]]
    assert len(rows) == 3
    results: list[NDArray[np.float32]] = [p.run(machines("gfx950"), name) for name in rows]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_nan_reaches_its_row_and_no_other(machines):
    p = Problem(Spec(5, 256, 70, "float", "mxfp4"))
    p.scales[[3, 64], [1, 7]] = 255
    p.a[2, 100] = np.nan
    for name in ("gemm_fp4_16x16", "gemm_fp4_16x64"):
        nan = np.zeros((5, 70), bool)
        nan[:, [3, 64]] = nan[2] = True
        assert (np.isnan(p.run(machines("gfx950"), name)) == nan).all()
