"""Kernels over rows: every type, rows of a wave and of a workgroup, against numpy in double; every instruction runs."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from gpu_oracle import FLOAT16_TINY, FP32_EPSILON, OUTPUT_EPSILON
from numpy.typing import NDArray

import device

WHOLE = {3: np.int64, 4: np.int32}
"""Of hip::Type."""
LENGTHS = (1, 65, 512, 513, 1100)
"""The first three rows are a wave's (kWaveRowMost)."""
OUTER, INNER = 3, 2
REDUCTIONS: list[Any] = [
    lambda x: x.sum(1),
    lambda x: x.mean(1),
    lambda x: x.max(1),
    lambda x: x.min(1),
    lambda x: x.prod(1),
    lambda x: np.abs(x).sum(1),
    lambda x: np.sqrt((x**2).sum(1)),
    lambda x: (x**2).sum(1),
    lambda x: np.log(x.sum(1)),
    lambda x: np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1),
]
"""By hip::Reduction."""


class Rows:
    """Launches of the kernels on tensors [outer, n, inner] of one type."""

    def __init__(self, machine: device.Device, dtype: str):
        self.machine, self.dtype, self.kind = machine, dtype, list(device.TYPES).index(dtype)
        self.kept: list[Any] = []

    def send(self, x: NDArray[Any]) -> int:
        self.kept.append(self.machine.sim.to_device(x))
        return int(self.kept[-1].ptr)

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        dtype = dtype or (np.uint16 if self.dtype == "bfloat16" else device.TYPES[self.dtype])
        self.kept.append(self.machine.sim.empty(shape, dtype))
        return self.kept[-1]

    def number(self, array: Any) -> NDArray[np.float64]:
        return device.from_bytes(array.numpy(), self.dtype).astype(np.float64)

    def launch(self, name: str, rows: int, n: int, args: bytes, each: int = 0) -> None:
        """``each``: rows of a workgroup; 0: by their length, as device/rows.cc."""
        if not each:
            name, each = (name + "_wave", 4) if n <= 512 else (name + "_group", 1)
        self.machine.module("rows").launch(name, (-(-rows // each),), (256,), [args])

    def close(self) -> None:
        for array in self.kept:
            array.free()
        self.kept = []

    def check(self, got: NDArray[np.float64], want: NDArray[np.float64], sums: Any) -> None:
        """``sums``: the error of the float computation, before the result is rounded to its type."""
        tiny = FLOAT16_TINY if self.dtype == "float16" else 0
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite])
        allowed = np.broadcast_to(sums, want.shape) + OUTPUT_EPSILON[self.dtype] * np.abs(want) * 1.01 + tiny
        worst = np.abs(got - want)[finite] / allowed[finite]
        assert (worst <= 1).all(), worst.max()


def values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, low: float, high: float
) -> NDArray[Any]:
    return device.to_bytes(rng.uniform(low, high, shape).astype(np.float32), dtype)


def doubles(x: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    return device.from_bytes(x, dtype).astype(np.float64)


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_softmax(counting_machines, arch):
    machine = counting_machines(arch)
    for dtype in device.TYPES:
        rows, rng = Rows(machine, dtype), np.random.default_rng(1)
        for n in LENGTHS:
            x = values(rng, (OUTER, n, INNER), dtype, -20, 20)
            if n == 65:
                x[1, 7, 1] = x[1, 9, 1] = device.to_bytes(np.float32([np.nan]), dtype)[0]
            v = doubles(x, dtype)
            shifted = v - v.max(1, keepdims=True)
            total = np.exp(shifted).sum(1, keepdims=True)
            for log in (0, 1):
                y = rows.empty(x.shape)
                args = struct.pack("<QIIQQii", OUTER * INNER, n, INNER, rows.send(x), y.ptr, rows.kind, log)
                rows.launch("softmax", OUTER * INNER, n, args)
                want = shifted - np.log(total) if log else np.exp(shifted) / total
                # Differences up to 40 with one rounding, the function, and a sum of n terms.
                sums = (48 + n / 64) * FP32_EPSILON * (1 + np.abs(want) if log else want)
                rows.check(rows.number(y), want, sums)
            rows.close()
    for name in ("softmax_wave", "softmax_group"):
        assert machine.unexecuted("rows", name) == []


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_norms(counting_machines, arch):
    machine = counting_machines(arch)
    forms = [  # which tensors there are, without the mean, rounded to the type before
        ("", 1, 0),
        ("skip bias scale shift sum mean inverse", 0, 0),
        ("skip scale inverse", 1, 0),
        ("scale shift mean", 0, 0),
        ("skip scale sum mean inverse", 0, 1),
    ]
    for dtype in device.TYPES:
        rows, rng = Rows(machine, dtype), np.random.default_rng(2)
        for n in LENGTHS[1:]:
            for form, rms, rounds in forms:
                shapes = {"x": (6, n), "skip": (3, n), "bias": (n,), "scale": (n,), "shift": (n,)}
                given = {
                    k: values(rng, shape, dtype, -2, 2)
                    for k, shape in shapes.items()
                    if k == "x" or k in form
                }
                number = {k: doubles(x, dtype) for k, x in given.items()}
                out = {"y": rows.empty((6, n))}
                out |= {"sum": rows.empty((6, n))} if "sum" in form else {}
                out |= {k: rows.empty((6,), np.float32) for k in ("mean", "inverse") if k in form}
                pointers = [rows.send(given[k]) if k in given else 0 for k in shapes]
                pointers += [out[k].ptr if k in out else 0 for k in ("y", "sum", "mean", "inverse")]
                kinds = (rows.kind, rows.kind, rows.kind, rms, rounds)
                args = struct.pack("<QII9QQf5i", 6, n, 1, *pointers, 3, 1e-3, *kinds)
                rows.launch("norm", 6, n, args)
                v = (
                    number["x"]
                    + np.tile(number.get("skip", np.zeros((3, n))), (2, 1))
                    + number.get("bias", 0)
                )
                if rounds:  # the sum of two numbers of the type, in float as on the device
                    v = doubles(device.to_bytes(v.astype(np.float32), dtype), dtype)
                mean = 0 * v[:, :1] if rms else v.mean(1, keepdims=True)
                inverse = 1 / np.sqrt(((v - mean) ** 2).mean(1, keepdims=True) + np.float32(1e-3))
                normed = (v - mean) * inverse
                y = normed * number.get("scale", 1) + number.get("shift", 0)
                unit = (n / 64 + 24) * FP32_EPSILON * np.abs(v).max()
                rows.check(rows.number(out["y"]), y, unit * inverse * 4 + 8 * FP32_EPSILON * np.abs(y))
                if "sum" in out:
                    rows.check(rows.number(out["sum"]), v, 4 * FP32_EPSILON * np.abs(v).max())
                if "mean" in out:
                    np.testing.assert_allclose(out["mean"].numpy(), mean[:, 0], atol=unit)
                if "inverse" in out:
                    np.testing.assert_allclose(
                        out["inverse"].numpy(), inverse[:, 0], rtol=(n / 64 + 24) * FP32_EPSILON
                    )
                rows.close()
    for name in ("norm_wave", "norm_group"):
        assert machine.unexecuted("rows", name) == []


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_reductions(counting_machines, arch):
    machine = counting_machines(arch)
    count = OUTER * INNER
    for dtype in device.TYPES:
        rows, rng = Rows(machine, dtype), np.random.default_rng(3)
        for n in LENGTHS:
            for reduction, function in enumerate(REDUCTIONS):
                x = values(rng, (OUTER, n, INNER), dtype, 0.9, 1.1)  # whose product is a number
                if reduction == 9 and n == 65:
                    x[0, :, 0] = device.to_bytes(np.full(n, -np.inf, np.float32), dtype)
                y = rows.empty((OUTER, INNER))
                args = struct.pack("<QIIQQii", count, n, INNER, rows.send(x), y.ptr, rows.kind, reduction)
                rows.launch("reduce_rows", count, n, args)
                with np.errstate(invalid="ignore"):
                    want = function(doubles(x, dtype))
                if reduction == 9 and n == 65:
                    want[0, 0] = -np.inf
                # n roundings at most, each of what the sum of magnitudes has come to.
                rows.check(
                    rows.number(y),
                    want,
                    (n + 24) * FP32_EPSILON * np.abs(np.where(np.isfinite(want), want, 0)),
                )
            rows.close()
    for name in ("reduce_rows_wave", "reduce_rows_group"):
        assert machine.unexecuted_work("rows", name) == []


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_reductions_of_whole_numbers(counting_machines, arch):
    machine, rng, count = counting_machines(arch), np.random.default_rng(4), OUTER * INNER
    rows = Rows(machine, "float")
    for kind, dtype in WHOLE.items():
        for n, low, high in ((1, -(2**31), 2**31 - 1), (20, -9, 9), (70, -(2**20), 2**20), (0, 0, 1)):
            for reduction in (0, 1, 2, 3, 4, 5, 7):
                if n == 0 and reduction in (1, 2, 3):
                    continue
                x = rng.integers(low, high, (OUTER, n, INNER)).astype(dtype)
                y = rows.empty((OUTER, INNER), dtype)
                args = struct.pack(
                    "<QIIQQii", count, n, INNER, rows.send(x) if n else 0, y.ptr, kind, reduction
                )
                rows.launch("reduce_whole", count, n, args, each=256)
                with np.errstate(over="ignore"):
                    total = x.astype(np.int64)
                    want = total.sum(1) if reduction == 1 else REDUCTIONS[reduction](total)
                    if reduction == 1:  # towards zero
                        want = np.sign(want) * (np.abs(want) // n)
                np.testing.assert_array_equal(y.numpy(), want.astype(dtype))
            rows.close()
    assert machine.unexecuted("rows", "reduce_whole") == []


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_the_best_of_a_row(counting_machines, arch):
    """In order, NaN the largest, of equal ones the first or the last."""
    machine, count = counting_machines(arch), OUTER * INNER
    for dtype in device.TYPES:
        rows, rng = Rows(machine, dtype), np.random.default_rng(5)
        for n, k in ((1, 1), (40, 3), (300, 5)):
            x = np.round(rng.uniform(-9, 9, (OUTER, n, INNER))).astype(np.float32)
            if n > 1:
                x[0, [3, 20], 1] = np.nan
            for smallest, last, wants in ((0, 0, True), (1, 1, True), (0, 1, False), (1, 0, False)):
                best, index = rows.empty((OUTER, k, INNER)), rows.empty((OUTER, k, INNER), np.int64)
                pointer = rows.send(device.to_bytes(x, dtype))
                args = struct.pack("<QIIQQQIiii", count, n, INNER, pointer, best.ptr if wants else 0, index.ptr, k,
                                   rows.kind, smallest, last)  # fmt: skip
                rows.launch("top", count, n, args, each=4)
                key = np.where(np.isnan(x), 1e9, x) * (1 if smallest else -1)
                tie = np.arange(n)[None, :, None] * (-1 if last else 1)
                order = np.lexsort(np.broadcast_arrays(tie, key), axis=1)[:, :k]
                np.testing.assert_array_equal(index.numpy(), order)
                if wants:
                    np.testing.assert_array_equal(rows.number(best), np.take_along_axis(x, order, 1))
            rows.close()
    assert machine.unexecuted("rows", "top") == []
