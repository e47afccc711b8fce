"""The kernel of one element at a time: every function, type and way of a program; every instruction of it runs."""

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
    (device.SOURCES / "args_pointwise.h").read_text().split("enum class Function")[1].split("};")[0],
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


MOST_INPUTS, MOST_STEPS = 8, 16
STRIDES = [(150, 50, 1), (0, 50, 1), (1, 0, 0)]
"""Of x [2, 3, 50], y [3, 50], z [2, 1, 1]."""


def step(function: str, operands: list[tuple[int, int]], to: tuple[int, int]) -> bytes:
    """PointwiseStep: operands are (an input, or 8 and a register; its type), `to` is (a register, its type)."""
    absent = [(-1, 0)] * (3 - len(operands))
    places, kinds = zip(*operands, *absent, strict=True)
    whole = all(kind >= 3 for place, kind in (*operands, to) if place >= 0)
    return struct.pack("<10i2f", FUNCTIONS.index(function), whole, *places, *kinds, *to, A, B)


def run(machine: device.Device, steps: list[bytes], given: list[Any], to: int) -> Any:
    sent = [machine.sim.to_device(x) if x is not None else None for x in given]
    out = machine.sim.empty(DIMS, np.uint16 if to == 2 else TYPES[to])
    inputs = [
        device.views(DIMS, strides) + struct.pack("<Q", x.ptr if x else 0)
        for strides, x in zip(STRIDES, sent, strict=False)
    ]
    args = b"".join(inputs).ljust(len(inputs[0]) * MOST_INPUTS, b"\0")
    args += b"".join(steps).ljust(len(steps[0]) * MOST_STEPS, b"\0")
    args += struct.pack("<QQIi", out.ptr, math.prod(DIMS), 256, len(steps))
    machine.module("pointwise").launch("pointwise", (1,), (256,), [args])
    result = out.numpy()
    for array in (*sent, out):
        if array:
            array.free()
    return result


def pointwise(machine: device.Device, function: str, given: list[Any], kinds: tuple[int, ...]) -> Any:
    """A program of one step, of kinds[:3], to kinds[3]."""
    operands = [(i, kinds[i]) if given[i] is not None else (-1, kinds[i]) for i in range(3)]
    return run(machine, [step(function, operands, (0, kinds[3]))], given, kinds[3])


def floats(rng: np.random.Generator, shape: tuple[int, ...], kind: int) -> NDArray[Any]:
    x = rng.uniform(-4, 4, shape)
    x.reshape(-1)[: len(SPECIAL)] = SPECIAL
    x.reshape(-1)[40:60] = np.round(x.reshape(-1)[40:60])
    with np.errstate(over="ignore"):
        return encode(x, kind)


def functions_of_floats(machine: device.Device, rng: np.random.Generator) -> None:
    """Of every type; where no number is right (NaN, infinities) the same as numpy has."""
    functions = OF_ANY | OF_FLOATS
    assert set(functions) == set(FUNCTIONS)
    for name, function in functions.items():
        kind = FUNCTIONS.index(name) % 3
        x, y = floats(rng, DIMS, kind), floats(rng, DIMS[1:], kind)
        y = y if name == "kPow" else np.roll(y, 60)
        z = encode(rng.uniform(-1, 1, (2, 1, 1)), kind)
        given = [x, y, z] if name not in ("kGelu", "kGeluTanh") or kind else [x, None, None]
        got = decode(pointwise(machine, name, given, (kind,) * 4), kind)
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
        cast(machine, rng, *kinds)
    operands_of_every_type(machine, rng, range(8), 0)
    x = floats(rng, DIMS, 0)
    for least in (None, np.full(DIMS[1:], -1, np.float32)):  # Clip without the most, without both
        got = pointwise(machine, "kClip", [x, least, None], (0,) * 4)
        np.testing.assert_array_equal(got, x if least is None else np.maximum(x, np.float32(-1)))


CASTS = [(0, k) for k in range(8)] + [(k, 0) for k in range(1, 8)]


def cast(machine: device.Device, rng: np.random.Generator, source: int, to: int) -> None:
    x = rng.integers(0, 2, DIMS) if 7 in (source, to) else rng.integers(0, 100, DIMS)
    given = encode(x, source)
    got = pointwise(machine, "kIdentity", [given, None, None], (source, 0, 0, to))
    np.testing.assert_array_equal(decode(got, to), x)


def operands_of_every_type(machine: device.Device, rng: np.random.Generator, types: range, to: int) -> None:
    """x ? y : z, whose types differ."""
    for kind in types:
        x, y, z = (rng.integers(0, 2, shape) for shape in (DIMS, DIMS[1:], (2, 1, 1)))
        other = types[-1 - types.index(kind)]
        given = [encode(x, 7), encode(y, kind), encode(z, other)]
        got = pointwise(machine, "kWhere", given, (7, kind, other, to))
        np.testing.assert_array_equal(decode(got, to), np.where(x != 0, y, z))


def functions_of_whole_numbers(machine: device.Device, rng: np.random.Generator) -> None:
    for most in (5, 2**40):
        for name, function in OF_ANY.items():
            for kind in (3,) if most > 100 else (3, 4, 5):
                x, y, z = (rng.integers(-most, most, shape) for shape in (DIMS, DIMS[1:], (2, 1, 1)))
                if name == "kDiv":
                    y = np.where(y == 0, 3, y)
                    y[0, :10] = rng.integers(1, 5, 10)
                    x[0, 0, :20] = rng.integers(0, 2**31, 20) % (most + 1)
                given = [encode(v, kind) for v in (x, y, z)]
                got = pointwise(machine, name, given, (kind,) * 4)
                with np.errstate(over="ignore"):
                    want = function(*(v.astype(np.int64) for v in given)).astype(TYPES[kind])
                np.testing.assert_array_equal(got, np.broadcast_to(want, DIMS), err_msg=name)
    for source in (3, 4, 5, 6, 7):
        for to in range(8):
            cast(machine, rng, source, to)
    for source in (0, 1, 2):
        cast(machine, rng, source, 3)
    operands_of_every_type(machine, rng, range(3, 8), 3)
    x = rng.integers(-9, 9, DIMS)
    np.testing.assert_array_equal(pointwise(machine, "kClip", [x, None, None], (3,) * 4), x)


def programs(machine: device.Device, rng: np.random.Generator) -> None:
    """Results of steps are what tensors of their type would have held."""
    x, y, z = (rng.integers(0, 100, shape) for shape in (DIMS, DIMS[1:], (2, 1, 1)))
    for kind in range(8):
        want = (x != 0) if kind == 7 else x
        kept = (MOST_INPUTS + 1, kind)
        for source in (0, 3):
            steps = [step("kIdentity", [(0, source)], (1, kind)), step("kIdentity", [kept], (0, source))]
            np.testing.assert_array_equal(run(machine, steps, [encode(x, source)], source), want)
    for kind, to in ((0, 0), (4, 0), (4, 3)):  # the same of whole numbers and floats, in each place
        x, y, z = (rng.integers(0, 2, shape) for shape in (DIMS, DIMS[1:], (2, 1, 1)))
        steps = [step("kIdentity", [(i, kind)], (3 - i, kind)) for i in range(3)]
        steps.append(step("kWhere", [(MOST_INPUTS + 3 - i, kind) for i in range(3)], (0, to)))
        got = run(machine, steps, [encode(v, kind) for v in (x, y, z)], to)
        np.testing.assert_array_equal(got, np.where(x != 0, y, z))
    # a = round(x / z), b = a + y, c = b - a, d = b * c, of which all are read again.
    x, y, z = (rng.integers(0, 100, shape) for shape in (DIMS, DIMS[1:], (2, 1, 1)))
    a, b, c, d = ((MOST_INPUTS + r, 2) for r in range(4))
    given, kinds = [encode(v + 1, 2) for v in (x, y, z)], [(i, 2) for i in range(3)]
    steps = [
        step("kDiv", [kinds[0], kinds[2]], (0, 2)),
        step("kAdd", [a, kinds[1]], (1, 2)),
        step("kSub", [b, a], (2, 2)),
        step("kMul", [b, c], (3, 2)),
        step("kWhere", [a, d, b], (0, 2)),
    ]

    def rounded(v: NDArray[Any]) -> NDArray[Any]:
        return decode(encode(v, 2), 2)

    first = rounded((x + 1.0) / (z + 1.0))
    second = rounded(first + rounded(y + 1.0))
    want = rounded(second * rounded(second - first))
    np.testing.assert_array_equal(decode(run(machine, steps, given, 2), 2), want)


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_every_instruction(counting_machines, arch):
    machine, rng = counting_machines(arch), np.random.default_rng(1)
    functions_of_floats(machine, rng)
    functions_of_whole_numbers(machine, rng)
    programs(machine, rng)
    assert machine.unexecuted_work("pointwise", "pointwise") == []
