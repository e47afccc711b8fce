"""Kernels that visit every element once: every function, type, copy and gather; every instruction of them runs."""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import numpy as np
import pytest
from gpu_oracle import FLOAT16_TINY, OUTPUT_EPSILON
from numpy.typing import NDArray

import device

TYPES: list[Any] = [np.float32, np.float16, None, np.int64, np.int32, np.int8, np.uint8, np.bool_]
"""By hip::Type; bfloat16 is bits."""
DIMS, A, B = (2, 3, 50), 0.25, 0.5
FUNCTIONS = re.findall(
    r"^  (k\w+),",
    (device.SOURCES / "args_strided.h").read_text().split("enum class Function")[1].split("};")[0],
    re.M,
)
INF, NAN = np.inf, np.nan
SPECIAL = [
    0,
    1,
    -1,
    0.3,
    -0.3,
    INF,
    -INF,
    NAN,
    100,
    -100,
    95,
    -95,
    1e-6,
    -1e-6,
    3e4,
    1e-40,
    2.5,
    -2.5,
    1e5,
    7,
    6e-39,
]
erf = np.vectorize(math.erf)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def gelu_tanh(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


OF_FLOATS: dict[str, Any] = {
    "kSqrt": lambda x, y, z: np.sqrt(x),
    "kReciprocal": lambda x, y, z: 1 / x,
    "kExp": lambda x, y, z: np.exp(x),
    "kLog": lambda x, y, z: np.log(x),
    "kErf": lambda x, y, z: erf(x),
    "kTanh": lambda x, y, z: np.tanh(x),
    "kSigmoid": lambda x, y, z: sigmoid(x),
    "kSoftplus": lambda x, y, z: np.logaddexp(0, x),
    "kSin": lambda x, y, z: np.sin(x),
    "kCos": lambda x, y, z: np.cos(x),
    "kFloor": lambda x, y, z: np.floor(x),
    "kCeil": lambda x, y, z: np.ceil(x),
    "kRound": lambda x, y, z: np.rint(x),
    "kIsNaN": lambda x, y, z: np.isnan(x),
    "kIsInf": lambda x, y, z: np.isinf(x),
    "kLeakyRelu": lambda x, y, z: np.where(x < 0, A * x, x),
    "kElu": lambda x, y, z: np.where(x < 0, A * np.expm1(x), x),
    "kHardSigmoid": lambda x, y, z: np.clip(A * x + B, 0, 1),
    "kHardSwish": lambda x, y, z: x * np.clip(A * x + B, 0, 1),
    "kSwish": lambda x, y, z: x * sigmoid(A * x),
    "kGelu": lambda x, y, z: 0.5 * (x + y) * (1 + erf((x + y) / math.sqrt(2))),
    "kGeluTanh": lambda x, y, z: gelu_tanh(x + y),
    "kMish": lambda x, y, z: x * np.tanh(np.logaddexp(0, x)),
    "kPow": lambda x, y, z: np.power(x, y),
}
OF_ANY: dict[str, Any] = {
    "kIdentity": lambda x, y, z: x,
    "kNeg": lambda x, y, z: -x,
    "kAbs": lambda x, y, z: np.abs(x),
    "kSign": lambda x, y, z: np.sign(x),
    "kNot": lambda x, y, z: x == 0,
    "kRelu": lambda x, y, z: np.where(x < 0, 0, x),
    "kAdd": lambda x, y, z: x + y,
    "kSub": lambda x, y, z: x - y,
    "kMul": lambda x, y, z: x * y,
    "kDiv": lambda x, y, z: (
        x / y if x.dtype.kind == "f" else np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))
    ),
    "kMin": lambda x, y, z: np.minimum(x, y),
    "kMax": lambda x, y, z: np.maximum(x, y),
    "kClip": lambda x, y, z: np.where(
        np.maximum(x, np.where(np.isnan(y), x, y)) > z, z, np.where(x < y, y, x)
    ),
    "kEqual": lambda x, y, z: x == y,
    "kLess": lambda x, y, z: x < y,
    "kLessOrEqual": lambda x, y, z: x <= y,
    "kGreater": lambda x, y, z: x > y,
    "kGreaterOrEqual": lambda x, y, z: x >= y,
    "kAnd": lambda x, y, z: (x != 0) & (y != 0),
    "kOr": lambda x, y, z: (x != 0) | (y != 0),
    "kXor": lambda x, y, z: (x != 0) ^ (y != 0),
    "kWhere": lambda x, y, z: np.where(x != 0, y, z),
    "kPRelu": lambda x, y, z: np.where(x < 0, x * y, x),
}


def encode(x: NDArray[Any], kind: int) -> NDArray[Any]:
    if kind < 3:
        return device.to_bytes(np.ascontiguousarray(x, np.float32), list(device.TYPES)[kind])
    return np.ascontiguousarray(x).astype(TYPES[kind])


def decode(x: NDArray[Any], kind: int) -> NDArray[Any]:
    return device.from_bytes(x, list(device.TYPES)[kind]).astype(np.float64) if kind < 3 else x


def views(dims: tuple[int, ...], *strides: tuple[int, ...]) -> bytes:
    """Strides<kOperands> of args_strided.h."""
    pad = [0] * (8 - len(dims))
    out = struct.pack("<I8I4x", len(dims), *dims, *pad)
    return out + b"".join(struct.pack("<8q", *of, *pad) for of in strides)


def pointwise(
    machine: device.Device, kernel: str, function: str, given: list[Any], kinds: tuple[int, ...]
) -> Any:
    """of x [2, 3, 50], y [3, 50], z [2, 1, 1] or None, of kinds[:3], to kinds[3]."""
    strides = [(150, 50, 1), (0, 50, 1), (1, 0, 0)]
    sent = [machine.sim.to_device(x) if x is not None else None for x in given]
    out = machine.sim.empty(DIMS, np.uint16 if kinds[3] == 2 else TYPES[kinds[3]])
    args = views(DIMS, *strides, (150, 50, 1)) + struct.pack(
        "<QQQQQ3iiiff4x", *(s.ptr if s else 0 for s in sent), out.ptr, math.prod(DIMS), *kinds[:3], kinds[3],
        FUNCTIONS.index(function), A, B,
    )  # fmt: skip
    machine.module("strided").launch(kernel, (1,), (256,), [args])
    result = out.numpy()
    for array in (*sent, out):
        if array:
            array.free()
    return result


def floats(rng: np.random.Generator, shape: tuple[int, ...], kind: int) -> NDArray[Any]:
    x = rng.uniform(-4, 4, shape)
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL
    x.reshape(-1)[40:60] = np.round(x.reshape(-1)[40:60])
    with np.errstate(over="ignore"):
        return encode(x, kind)


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_functions_of_floats(counting_machines, arch):
    """Of every type; where no number is right (NaN, infinities) the same as numpy has."""
    machine, rng = counting_machines(arch), np.random.default_rng(1)
    functions = OF_ANY | OF_FLOATS
    assert set(functions) == set(FUNCTIONS)
    for name, function in functions.items():
        kind = FUNCTIONS.index(name) % 3
        x, y = floats(rng, DIMS, kind), floats(rng, DIMS[1:], kind)
        y = y if name == "kPow" else np.roll(y, 60)
        z = encode(rng.uniform(-1, 1, (2, 1, 1)), kind)
        given = [x, y, z] if name not in ("kGelu", "kGeluTanh") or kind else [x, None, None]
        got = decode(pointwise(machine, "pointwise_float", name, given, (kind,) * 4), kind)
        values = [decode(v, kind) if v is not None else 0.0 for v in given]
        with np.errstate(all="ignore"):
            want = np.broadcast_to(np.asarray(function(*values), np.float64), DIMS)
            want = decode(encode(want, kind), kind) if kind == 1 else want  # which overflows
            infinite = ~np.isfinite(want) | (np.abs(want) > 3.4e38)
            np.testing.assert_array_equal(got[infinite], want[infinite].astype(np.float32), err_msg=name)
            # About two units of the last place of a float, a function of a function four times that.
            allowed = (
                2.0**-20 * np.abs(want)
                + 2.0**-22
                + OUTPUT_EPSILON[list(device.TYPES)[kind]] * np.abs(want) * 1.01
            )
            wrong = ~infinite & ~(np.abs(got - want) <= allowed + FLOAT16_TINY)
        assert not wrong.any(), (
            name,
            np.broadcast_to(values[0], DIMS)[wrong][:3],
            got[wrong][:3],
            want[wrong][:3],
        )
    for kinds in CASTS:
        cast(machine, "pointwise_float", rng, *kinds)
    operands_of_every_type(machine, "pointwise_float", rng, 0)
    x = floats(rng, DIMS, 0)
    for least in (None, np.full(DIMS[1:], -1, np.float32)):  # Clip without the most, without both
        got = pointwise(machine, "pointwise_float", "kClip", [x, least, None], (0,) * 4)
        np.testing.assert_array_equal(got, x if least is None else np.maximum(x, np.float32(-1)))
    assert machine.unexecuted("strided", "pointwise_float") == []


CASTS = [(0, k) for k in range(8)] + [(k, 0) for k in range(1, 8)]


def cast(machine: device.Device, kernel: str, rng: np.random.Generator, source: int, to: int) -> None:
    x = rng.integers(0, 2, DIMS) if 7 in (source, to) else rng.integers(0, 100, DIMS)
    given = encode(x, source)
    got = pointwise(machine, kernel, "kIdentity", [given, None, None], (source, 0, 0, to))
    np.testing.assert_array_equal(decode(got, to), x)


def operands_of_every_type(machine: device.Device, kernel: str, rng: np.random.Generator, to: int) -> None:
    """x ? y : z, whose types differ."""
    for kind in range(8):
        x, y, z = (rng.integers(0, 2, shape) for shape in (DIMS, DIMS[1:], (2, 1, 1)))
        given = [encode(x, 7), encode(y, kind), encode(z, 7 - kind)]
        got = pointwise(machine, kernel, "kWhere", given, (7, kind, 7 - kind, to))
        np.testing.assert_array_equal(decode(got, to), np.where(x != 0, y, z))


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_functions_of_whole_numbers(counting_machines, arch):
    machine, rng = counting_machines(arch), np.random.default_rng(2)
    for most in (5, 2**40):
        for name, function in OF_ANY.items():
            for kind in (3,) if most > 100 else (3, 4, 5):
                x, y, z = (rng.integers(-most, most, shape) for shape in (DIMS, DIMS[1:], (2, 1, 1)))
                if name == "kDiv":
                    y = np.where(y == 0, 3, y)
                    y[0, :10] = rng.integers(1, 5, 10)
                    x[0, 0, :20] = rng.integers(0, 2**31, 20) % (most + 1)
                given = [encode(v, kind) for v in (x, y, z)]
                got = pointwise(machine, "pointwise_int", name, given, (kind,) * 4)
                with np.errstate(over="ignore"):
                    want = function(*(v.astype(np.int64) for v in given)).astype(TYPES[kind])
                np.testing.assert_array_equal(got, np.broadcast_to(want, DIMS), err_msg=name)
    for source in (3, 4, 5, 6, 7):
        for to in range(8):
            cast(machine, "pointwise_int", rng, source, to)
    for source in (0, 1, 2):
        cast(machine, "pointwise_int", rng, source, 3)
    operands_of_every_type(machine, "pointwise_int", rng, 3)
    x = rng.integers(-9, 9, DIMS)
    np.testing.assert_array_equal(pointwise(machine, "pointwise_int", "kClip", [x, None, None], (3,) * 4), x)
    assert machine.unexecuted("strided", "pointwise_int") == []


WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.dtype((np.uint64, 2))}


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_copies_between_views(counting_machines, arch):
    """Transposes, repeats and one element, of 1 to 8 dimensions."""
    machine, rng = counting_machines(arch), np.random.default_rng(3)
    for size in WORDS:
        for dims, repeats in [
            ((5, 7, 31), False),
            ((1300,), False),
            ((2,) * 8, False),
            ((1,), False),
            ((9, 130), True),
        ]:
            x = rng.integers(0, 256, (*(dims[1:] if repeats else dims), size)).astype(np.uint8)
            elements = [int(np.prod(dims[d + 1 :], dtype=int)) for d in range(len(dims))]
            perm = tuple(reversed(range(len(dims)))) if not repeats else (0, 1)
            source = [0, 1] if repeats else [elements[p] for p in perm]
            out_dims = tuple(dims[p] for p in perm)
            to = [int(np.prod(out_dims[d + 1 :], dtype=int)) for d in range(len(dims))]
            sent, out = machine.sim.to_device(x), machine.sim.empty((*out_dims, size), np.uint8)
            count = math.prod(dims)
            args = views(out_dims, tuple(source), tuple(to)) + struct.pack("<QQQ", sent.ptr, out.ptr, count)
            machine.module("strided").launch(f"copy_{size}", (-(-count // 1024),), (256,), [args])
            want = np.broadcast_to(x, (*dims, size)) if repeats else x.transpose(*perm, len(dims))
            np.testing.assert_array_equal(out.numpy(), want)
            sent.free()
            out.free()
        assert machine.unexecuted("strided", f"copy_{size}") == []


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_gathers(counting_machines, arch):
    """Along one axis and two, indices of either type, from the end, and such as do not exist, which give zeros."""
    machine, rng = counting_machines(arch), np.random.default_rng(4)
    for size in WORDS:
        for kind in (3, 4):
            x = rng.integers(1, 256, (6, 5, 70, size)).astype(np.uint8)
            index = np.array([[0, 4], [5, -1], [-6, 0], [6, 0], [2, -6], [1, 5]]).astype(TYPES[kind])
            sent, indices = machine.sim.to_device(x), machine.sim.to_device(index)
            for axes in (2, 1):
                dims = (6, 70) if axes == 2 else (6, 5, 70)
                out = machine.sim.empty((*dims, size), np.uint8)
                strides = ((0, 1), (2, 0), (70, 1)) if axes == 2 else ((0, 70, 1), (2, 0, 0), (350, 70, 1))
                sizes, of_axes = [6, 5] + [0] * 6, [350, 70] + [0] * 6
                args = views(dims, *strides) + struct.pack(
                    "<QQQQIi8q8q",
                    sent.ptr,
                    indices.ptr,
                    out.ptr,
                    math.prod(dims),
                    axes,
                    kind,
                    *sizes,
                    *of_axes,
                )
                machine.module("strided").launch(
                    f"gather_{size}", (-(-math.prod(dims) // 1024),), (256,), [args]
                )
                got = out.numpy()
                for row, (i, j) in enumerate(index.astype(int)):
                    exists = -6 <= i < 6 and (axes == 1 or -5 <= j < 5)
                    want = (x[i, j] if axes == 2 else x[i]) if exists else np.zeros_like(got[row])
                    np.testing.assert_array_equal(got[row], want)
                out.free()
            sent.free()
            indices.free()
        assert machine.unexecuted_work("strided", f"gather_{size}") == []
