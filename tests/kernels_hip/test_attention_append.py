"""What new queries, keys and values become on their way (attention_append.hip), against numpy in double."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from attention_device import FLOAT, INT, LONG, POINTER, UINT, DeviceLengths, HeadStrides
from numpy.typing import NDArray

import device
from mxort import formats, scales

PLAIN, MXFP8, MXFP4 = range(3)
FORMATS = {MXFP8: formats.E4M3, MXFP4: formats.E2M1}


class Part(ctypes.Structure):
    _fields_ = [
        *[(n, POINTER) for n in ("source", "to", "bias", "norm")],
        ("source_strides", HeadStrides),
        ("to_strides", HeadStrides),
        *[(n, UINT) for n in ("heads", "size")],
        *[(n, INT) for n in ("rotary", "past", "format")],
    ]


class AppendArgs(ctypes.Structure):
    _fields_ = [
        ("part", Part * 3),
        *[(n, POINTER) for n in ("cos", "sin", "ids")],
        ("lengths", DeviceLengths),
        ("ids_batch", LONG),
        *[(n, INT) for n in ("ids_position", "rotation_batch")],
        *[(n, UINT) for n in ("batch", "length", "capacity", "past", "pairs", "positions")],
        *[(n, INT) for n in ("interleaved", "type")],
        ("epsilon", FLOAT),
    ]


class CopyArgs(ctypes.Structure):
    _fields_ = [
        ("source", POINTER * 2),
        ("to", POINTER * 2),
        ("row_bytes", UINT * 2),
        ("lengths", DeviceLengths),
        *[(n, UINT) for n in ("past", "length", "kv_heads", "from_capacity", "to_capacity", "groups")],
    ]


@dataclass
class New:
    """Packed heads [batch, length, 3 + 2 + 2, size], of which queries go to a tensor and the rest to caches."""

    x: NDArray[np.float32]
    angle: NDArray[np.float64]  # [positions, pairs]
    past: list[int]
    dtype: str = "float"
    interleaved: bool = False
    fmt: int = PLAIN
    norm: NDArray[np.float32] | None = None  # of queries and keys
    bias: NDArray[np.float32] | None = None  # [7, size]
    ids: NDArray[np.int64] | None = None
    capacity: int = 24

    def number(self, x: NDArray[Any]) -> NDArray[np.float64]:
        x = np.ascontiguousarray(x, np.float32)
        return device.from_bytes(device.to_bytes(x, self.dtype), self.dtype).astype(np.float64)


HEADS = (3, 2, 2)


def row_bytes(new: New) -> int:
    size = new.x.shape[-1]
    if new.fmt == PLAIN:
        return size * (4 if new.dtype == "float" else 2)
    return (size if new.fmt == MXFP8 else size // 2) + size // 32


def run(machine: device.Device, new: New) -> tuple[NDArray[np.float32], list[NDArray[np.uint8]]]:
    """Queries, and the caches of keys and values as bytes [batch, heads, capacity, row], of which what is not written
    stays 0xA5."""
    batch, length, all_heads, size = new.x.shape
    kept: list[Any] = []

    def send(x: NDArray[Any], typed: bool = True) -> Any:
        values = device.to_bytes(np.ascontiguousarray(x, np.float32), new.dtype) if typed else x
        kept.append(machine.sim.to_device(values))
        return kept[-1]

    x, element = send(new.x), 4 if new.dtype == "float" else 2
    queries = send(np.zeros((batch, length, HEADS[0], size)))
    shape = (batch, 2, new.capacity, row_bytes(new))
    caches = [send(np.full(shape, 0xA5, np.uint8), typed=False) for _ in range(2)]
    a = AppendArgs(
        batch=batch, length=length, capacity=new.capacity, interleaved=new.interleaved, epsilon=1e-5
    )
    a.type = list(device.TYPES).index(new.dtype)
    a.pairs, a.positions = new.angle.shape[1], new.angle.shape[0]
    a.cos, a.sin = send(np.cos(new.angle)).ptr, send(np.sin(new.angle)).ptr
    a.lengths = DeviceLengths(send(np.array(new.past, np.int32) + length, typed=False).ptr, 1, 0)
    if new.ids is not None:
        a.ids, a.ids_batch, a.ids_position = send(new.ids, typed=False).ptr, length, 1
    first = 0
    for i, heads in enumerate(HEADS):
        part = a.part[i]
        part.source = x.ptr + first * size * element
        part.source_strides = HeadStrides(length * all_heads * size, all_heads * size, size)
        part.heads, part.size, part.rotary = heads, size, i < 2
        if new.norm is not None and i < 2:
            part.norm = send(new.norm).ptr
        if new.bias is not None:
            part.bias = send(new.bias[first : first + heads]).ptr
        first += heads
        if i == 0:
            part.to, part.to_strides = queries.ptr, HeadStrides(length * heads * size, heads * size, size)
        else:
            row = row_bytes(new) if new.fmt else size
            part.to, part.past, part.format = caches[i - 1].ptr, 1, new.fmt
            part.to_strides = HeadStrides(heads * new.capacity * row, row, new.capacity * row)
    groups = -(-sum(HEADS) // 4)
    machine.module("attention_append").launch(
        "attention_append", (batch * length * groups,), (256,), [bytes(a)]
    )
    result = device.from_bytes(queries.numpy(), new.dtype), [c.numpy() for c in caches]
    for array in kept:
        array.free()
    return result


def expected(new: New) -> NDArray[np.float64]:
    """[batch, length, heads, size]: of queries, keys, values."""
    x = new.number(new.x)
    length = x.shape[1]
    if new.bias is not None:
        x = x + new.number(new.bias)
    rotated = x[:, :, :5]
    if new.norm is not None:
        rotated = rotated / np.sqrt((rotated**2).mean(-1, keepdims=True) + 1e-5) * new.number(new.norm)
    position = np.array(new.past)[:, None] + np.arange(length) if new.ids is None else new.ids
    cos, sin = (new.number(f(new.angle))[position][:, :, None] for f in (np.cos, np.sin))
    pairs = new.angle.shape[1]
    turned = rotated.copy()
    first, second = (np.s_[..., 0 : 2 * pairs : 2], np.s_[..., 1 : 2 * pairs : 2]) if new.interleaved else (
        np.s_[..., :pairs], np.s_[..., pairs : 2 * pairs])  # fmt: skip
    turned[first] = rotated[first] * cos - rotated[second] * sin
    turned[second] = rotated[second] * cos + rotated[first] * sin
    return np.concatenate([turned, x[:, :, 5:]], axis=2)


def new(seed: int, size: int, pairs: int, past: list[int], length: int = 3, **other: Any) -> New:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((len(past), length, sum(HEADS), size)).astype(np.float32)
    return New(x, rng.uniform(-3, 3, (30, pairs)), past, **other)


def check_plain(made: New, queries: NDArray[np.float32], caches: list[NDArray[np.uint8]]) -> None:
    want = expected(made)
    _, length, _, size = made.x.shape
    unit = {"float": 2.0**-22, "float16": 2.0**-11, "bfloat16": 2.0**-8}[made.dtype]
    # Two products, a sum and one rounding; with a norm a sum of `size` squares before.
    atol = unit * 2 * (1 + size / 16 if made.norm is not None else 1) * 4
    np.testing.assert_allclose(queries, want[:, :, :3], rtol=0, atol=atol)
    dtype = np.uint16 if made.dtype == "bfloat16" else device.TYPES[made.dtype]
    for i, cache in enumerate(caches):
        values = device.from_bytes(cache.view(dtype), made.dtype)
        for b, past in enumerate(made.past):
            got = values[b, :, past : past + length].transpose(1, 0, 2)
            np.testing.assert_allclose(got, want[b, :, 3 + 2 * i : 5 + 2 * i], rtol=0, atol=atol)
            untouched = np.delete(cache[b], np.s_[past : past + length], axis=1)
            assert (untouched == 0xA5).all()


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
@pytest.mark.parametrize("dtype", list(device.TYPES))
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotated_into_a_cache(machines, arch, dtype, interleaved):
    for size, pairs in ((8, 4), (64, 32), (80, 16), (256, 128)):
        made = new(size, size, pairs, [0, 7], dtype=dtype, interleaved=interleaved)
        check_plain(made, *run(machines(arch), made))


def test_normalised_biased_and_by_position(machines):
    rng = np.random.default_rng(1)
    made = new(3, 96, 48, [2, 5], norm=rng.standard_normal(96).astype(np.float32))
    check_plain(made, *run(machines("gfx950"), made))
    made = new(
        4,
        64,
        8,
        [2, 5],
        bias=rng.standard_normal((7, 64)).astype(np.float32),
        ids=rng.integers(0, 30, (2, 3)),
    )
    check_plain(made, *run(machines("gfx950"), made))


def test_nothing_is_stored_behind_the_cache(machines):
    made = new(3, 64, 32, [22, 2], capacity=23)
    queries, caches = run(machines("gfx950"), made)
    # The device cuts the length to the capacity, so that what is too much overwrites the end.
    np.testing.assert_allclose(queries[1], expected(made)[1, :, :3], atol=1e-5)
    assert (caches[0][0, :, :20] == 0xA5).all()


@pytest.mark.parametrize("fmt", [MXFP8, MXFP4])
def test_quantised_bit_for_bit(machines, fmt):
    for seed, size in enumerate((32, 64, 96, 256)):
        made = new(seed, size, size // 2, [1, 9], fmt=fmt)
        made.x[0, 0, 6, 3] = np.inf  # a value's
        made.x[0, 1, 5] *= 2.0**-120
        made.x[0, 2, 5] = 0
        _, caches = run(machines("gfx950"), made)
        # Keys as the kernel itself rotates them to a float cache, which other tests compare with double.
        plain = new(seed, size, size // 2, [1, 9])
        plain.x[...] = made.x
        _, floats = run(machines("gfx950"), plain)
        element = FORMATS[fmt]
        for cache, numbers in zip(caches, floats, strict=True):
            for b, past in enumerate(made.past):
                x = numbers.view(np.float32)[b, :, past : past + 3].reshape(-1, size)
                codes, exponents = scales.quantize_blocks(formats.to_blocks(x), element, "even")
                codes = codes.reshape(len(x), size)
                if fmt == MXFP4:
                    codes = codes[:, ::2] | codes[:, 1::2] << 4
                want = np.concatenate([codes, exponents.reshape(len(x), -1)], axis=1).astype(np.uint8)
                got = cache[b, :, past : past + 3].reshape(len(x), -1)
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("row", [(32, 64), (34, 66)])
def test_caches_that_grow(machines, row):
    """Positions before the new ones are copied, those behind are zeros, the new ones are left."""
    rng, machine = np.random.default_rng(0), machines("gfx950")
    before = [rng.integers(0, 256, (2, 3, 5, r)).astype(np.uint8) for r in row]
    sources = [machine.sim.to_device(x) for x in before]
    to = [machine.sim.to_device(np.full((2, 3, 9, r), 0xA5, np.uint8)) for r in row]
    lengths = machine.sim.to_device(np.array([6, 3], np.int32))
    a = CopyArgs(length=2, kv_heads=3, from_capacity=5, to_capacity=9, groups=2)
    a.source[:], a.to[:], a.row_bytes[:] = [s.ptr for s in sources], [t.ptr for t in to], row
    a.lengths = DeviceLengths(lengths.ptr, 1, 1)
    machine.module("attention_append").launch("attention_copy", (2, 6), (256,), [bytes(a)])
    for x, cache in zip(before, to, strict=True):
        got = cache.numpy()
        for b, past in enumerate((5, 2)):
            np.testing.assert_array_equal(got[b, :, :past], x[b, :, :past])
            assert (got[b, :, past : past + 2] == 0xA5).all()
            assert (got[b, :, past + 2 :] == 0).all()


class WindowArgs(ctypes.Structure):
    _fields_ = [
        ("source", POINTER * 2),
        ("to", POINTER * 2),
        ("lengths", DeviceLengths),
        *[(n, UINT) for n in ("length", "kv_heads", "row_bytes", "from_capacity")],
        *[(n, INT) for n in ("capacity", "window", "staged", "first", "clear")],
    ]


def held(capacity: int, window: int, positions: int) -> list[int]:
    """Positions in a cache that holds a window, one coming after the other: a full one drops all that no later step
    sees."""
    rows: list[int] = []
    for position in range(positions):
        if len(rows) == capacity:
            rows = rows[capacity - window + 1 :]
        rows.append(position)
    return rows


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
@pytest.mark.parametrize(
    "capacity, window, fresh", [(7, 7, 1), (9, 4, 1), (9, 4, 5), (9, 4, 23), (300, 290, 1)]
)
def test_caches_that_hold_a_window(machines, arch, capacity, window, fresh):
    """A row's bytes are of its position. What moves is what stays; behind that zeros, if asked for."""
    machine, heads = machines(arch), 2
    totals = [fresh, capacity + 1, 3 * capacity + 2, 2 * capacity] if capacity < 300 else [301, 640]
    for row_bytes, in_place, total in itertools.product((16, 80, 128), (False, True), totals):
        if total < fresh or (in_place and fresh > 1):
            continue
        before = held(capacity, window, total - fresh)
        present = before + (list(range(total - fresh, total)) if fresh > 1 else [])
        from_capacity = capacity + (fresh if fresh > 1 else 0)
        pattern = np.arange(row_bytes, dtype=np.uint32) * 7
        x = np.full((1, heads, from_capacity, row_bytes), 0xEE, np.uint8)
        for head, (row, position) in itertools.product(range(heads), enumerate(present)):
            x[0, head, row] = (pattern + 31 * position + 101 * head).astype(np.uint8)
        sources = [machine.sim.to_device(x), machine.sim.to_device(x ^ 0x5A)]
        empty = np.full((1, heads, capacity, row_bytes), 0xA5, np.uint8)
        to = sources if in_place else [machine.sim.to_device(empty) for _ in range(2)]
        a = WindowArgs(length=fresh, kv_heads=heads, row_bytes=row_bytes, from_capacity=from_capacity)
        a.capacity, a.window, a.staged, a.first = capacity, window, int(fresh > 1), int(total == fresh)
        a.clear = int(not in_place)
        a.source[:], a.to[:] = [s.ptr for s in sources], [t.ptr for t in to]
        lengths = machine.sim.to_device(np.array([total - 1], np.int32))
        a.lengths = DeviceLengths(lengths.ptr, 1, 1)
        pieces = -(-row_bytes // 64)
        machine.module("attention_append").launch("attention_window", (2 * pieces, heads), (256,), [bytes(a)])
        after = held(capacity, window, total)
        kept = after if fresh > 1 else after[:-1]
        for which, cache in enumerate(to):
            got = cache.numpy()
            for head, (row, position) in itertools.product(range(heads), enumerate(kept)):
                want = (pattern + 31 * position + 101 * head).astype(np.uint8) ^ (0x5A if which else 0)
                np.testing.assert_array_equal(got[0, head, row], want)
            assert in_place or (got[:, :, len(after) :] == 0).all()
        for array in [*sources, *([] if in_place else to), lengths]:
            array.free()
