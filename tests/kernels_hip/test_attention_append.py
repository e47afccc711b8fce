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
    host_past: bool = False  # the same past of all batches, which the host knows
    first_ids: bool = False  # an id a batch: its first position's
    holds: tuple[int, int] | None = None  # capacity and window of a cache that holds a window
    everywhere: bool = False  # queries go to a cache too, and values are normalised and rotated

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
    caches = [
        send(np.full((batch, heads, new.capacity, row_bytes(new)), 0xA5, np.uint8), typed=False)
        for heads in HEADS[0 if new.everywhere else 1 :]
    ]
    a = AppendArgs(
        batch=batch, length=length, capacity=new.capacity, interleaved=new.interleaved, epsilon=1e-5
    )
    a.type = list(device.TYPES).index(new.dtype)
    a.pairs, a.positions = new.angle.shape[1], new.angle.shape[0]
    a.cos, a.sin = send(np.cos(new.angle)).ptr, send(np.sin(new.angle)).ptr
    if new.host_past:
        a.past = new.past[0]
    else:
        lengths = send(np.array(new.past, np.int32) + length, typed=False).ptr
        a.lengths = DeviceLengths(lengths, 1, 0, *(new.holds or (0, 0)), length if new.holds else 0)
    if new.ids is not None:
        a.ids, a.ids_batch, a.ids_position = send(new.ids, typed=False).ptr, length, int(not new.first_ids)
    first = 0
    for i, heads in enumerate(HEADS):
        part = a.part[i]
        part.source = x.ptr + first * size * element
        part.source_strides = HeadStrides(length * all_heads * size, all_heads * size, size)
        part.heads, part.size, part.rotary = heads, size, i < 2 or new.everywhere
        if new.norm is not None and part.rotary:
            part.norm = send(new.norm).ptr
        if new.bias is not None:
            part.bias = send(new.bias[first : first + heads]).ptr
        first += heads
        if i == 0 and not new.everywhere:
            part.to, part.to_strides = queries.ptr, HeadStrides(length * heads * size, heads * size, size)
        else:
            row = row_bytes(new) if new.fmt else size
            part.to, part.past, part.format = caches[i - 3].ptr, 1, new.fmt
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
    of_keys = 7 if new.everywhere else 5
    rotated = x[:, :, :of_keys]
    if new.norm is not None:
        rotated = rotated / np.sqrt((rotated**2).mean(-1, keepdims=True) + 1e-5) * new.number(new.norm)
    position = np.array(new.past)[:, None] + np.arange(length) if new.ids is None else new.ids
    position = np.clip(position, 0, len(new.angle) - 1)
    cos, sin = (new.number(f(new.angle))[position][:, :, None] for f in (np.cos, np.sin))
    pairs = new.angle.shape[1]
    turned = rotated.copy()
    first, second = (np.s_[..., 0 : 2 * pairs : 2], np.s_[..., 1 : 2 * pairs : 2]) if new.interleaved else (
        np.s_[..., :pairs], np.s_[..., pairs : 2 * pairs])  # fmt: skip
    turned[first] = rotated[first] * cos - rotated[second] * sin
    turned[second] = rotated[second] * cos + rotated[first] * sin
    return np.concatenate([turned, x[:, :, of_keys:]], axis=2)


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
    if not made.everywhere:
        np.testing.assert_allclose(queries, want[:, :, :3], rtol=0, atol=atol)
    dtype = np.uint16 if made.dtype == "bfloat16" else device.TYPES[made.dtype]
    for cache, first, heads in zip(caches[::-1], (5, 3, 0), HEADS[::-1], strict=False):
        values = device.from_bytes(cache.view(dtype), made.dtype)
        for b, past in enumerate(made.past):
            got = values[b, :, past : past + length].transpose(1, 0, 2)
            np.testing.assert_allclose(got, want[b, :, first : first + heads], rtol=0, atol=atol)
            untouched = np.delete(cache[b], np.s_[past : past + length], axis=1)
            assert (untouched == 0xA5).all()


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_appended_and_every_instruction_runs(counting_machines, arch):
    machine, rng = counting_machines(arch), np.random.default_rng(1)
    for dtype in device.TYPES:
        for size, pairs in ((8, 4), (64, 32), (80, 16), (256, 128)):
            for interleaved in (False, True):
                made = new(size, size, pairs, [0, 7], dtype=dtype, interleaved=interleaved)
                check_plain(made, *run(machine, made))
        norm, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((96,), (7, 64)))
        made = new(3, 96, 48, [2, 5], dtype=dtype, norm=norm)
        check_plain(made, *run(machine, made))
        made = new(4, 64, 8, [2, 5], dtype=dtype, bias=bias, ids=rng.integers(0, 30, (2, 3)))
        check_plain(made, *run(machine, made))
        # One past and one id for all batches, as attributes and the host have them.
        made = new(5, 64, 8, [4, 4], dtype=dtype, host_past=True)
        check_plain(made, *run(machine, made))
        made = new(6, 256, 8, [2, 5], dtype=dtype, ids=np.array([[9], [20]]) + np.arange(3), first_ids=True)
        check_plain(made, *run(machine, made))
        # Positions of rotation beyond the angles' are the last one, before them the first.
        made = new(7, 64, 8, [2, 5], dtype=dtype, ids=np.array([[-3, 40, 2], [0, 1, 99]]))
        check_plain(made, *run(machine, made))
        for pairs, interleaved in itertools.product((128, 16), (False, True)):
            norm, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((256,), (7, 256)))
            for other in ({"norm": norm, "bias": bias}, {"bias": bias}, {"norm": norm}, {}):
                made = new(
                    9, 256, pairs, [2, 5], dtype=dtype, interleaved=interleaved, everywhere=True, **other
                )
                check_plain(made, *run(machine, made))
    for fmt in FORMATS:
        for everywhere in (False, True):
            check_quantised(machine, fmt, everywhere)
    check_window_of_positions(machine)
    assert machine.unexecuted_work("attention_append", "attention_append") == []


def check_window_of_positions(machine: device.Device) -> None:
    """A cache of 9 that holds a window of 4: stored by what is there, rotated by position."""
    made = new(8, 64, 8, [12, 3], length=1, holds=(9, 4), capacity=9)
    queries, caches = run(machine, made)
    want = expected(made)
    np.testing.assert_allclose(queries, want[:, :, :3], atol=1e-5)
    for b, row in ((0, len(held(9, 4, 13)) - 1), (1, 3)):
        keys = device.from_bytes(caches[0].view(np.float32), "float")[b, :, row]
        np.testing.assert_allclose(keys, want[b, 0, 3:5], atol=1e-5)


def test_nothing_is_stored_behind_the_cache(machines):
    made = new(3, 64, 32, [22, 2], capacity=23)
    queries, caches = run(machines("gfx950"), made)
    # The device cuts the length to the capacity, so that what is too much overwrites the end.
    np.testing.assert_allclose(queries[1], expected(made)[1, :, :3], atol=1e-5)
    assert (caches[0][0, :, :20] == 0xA5).all()


def check_quantised(machine: device.Device, fmt: int, everywhere: bool) -> None:
    """Bit for bit what NumPy makes of the numbers."""
    for seed, size in enumerate((32, 64, 96, 256)):
        made = new(seed, size, size // 2, [1, 9], fmt=fmt, everywhere=everywhere)
        made.x[0, 0, 6, 3] = np.inf  # a value's
        made.x[0, 1, 5] *= 2.0**-120
        made.x[0, 2, 5] = 0
        _, caches = run(machine, made)
        # Keys as the kernel itself rotates them to a float cache, which other tests compare with double.
        plain = new(seed, size, size // 2, [1, 9], everywhere=everywhere)
        plain.x[...] = made.x
        _, floats = run(machine, plain)
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


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_caches_that_grow_and_every_instruction_runs(counting_machines, arch):
    """Positions before the new ones are copied, those behind are zeros, the new ones are left."""
    machine = counting_machines(arch)
    for row in ((32, 64), (34, 66)):
        check_grown(machine, row, lengths=True, past=[5, 2])
        check_grown(machine, row, lengths=False, past=[4, 4])
        # Of a cache of 5 that holds a window of 3: 4 of 7 positions are there, 5 of 11.
        check_grown(machine, row, lengths=True, past=[4, 5], positions=[7, 11], holds=(5, 3))
    assert machine.unexecuted("attention_append", "attention_copy") == []


def check_grown(
    machine: device.Device,
    row: tuple[int, int],
    lengths: bool,
    past: list[int],
    positions: list[int] | None = None,
    holds: tuple[int, int] = (0, 0),
) -> None:
    rng = np.random.default_rng(0)
    before = [rng.integers(0, 256, (2, 3, 5, r)).astype(np.uint8) for r in row]
    sources = [machine.sim.to_device(x) for x in before]
    to = [machine.sim.to_device(np.full((2, 3, 9, r), 0xA5, np.uint8)) for r in row]
    a = CopyArgs(length=2, kv_heads=3, from_capacity=5, to_capacity=9, groups=2, past=past[0])
    a.source[:], a.to[:], a.row_bytes[:] = [s.ptr for s in sources], [t.ptr for t in to], row
    if lengths:
        of_all = machine.sim.to_device(np.array(positions or past, np.int32) + 1)
        a.lengths = DeviceLengths(of_all.ptr, 1, 1, *holds, 2 if positions else 0)
    machine.module("attention_append").launch("attention_copy", (2, 6), (256,), [bytes(a)])
    for x, cache in zip(before, to, strict=True):
        got = cache.numpy()
        for b, before_new in enumerate(past):
            np.testing.assert_array_equal(got[b, :, :before_new], x[b, :, :before_new])
            assert (got[b, :, before_new : before_new + 2] == 0xA5).all()
            assert (got[b, :, before_new + 2 :] == 0).all()


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
def test_caches_that_hold_a_window_and_every_instruction_runs(counting_machines, arch):
    machine = counting_machines(arch)
    for capacity, window, fresh in ((7, 7, 1), (9, 4, 1), (9, 4, 5), (9, 4, 23), (300, 290, 1)):
        check_window(machine, capacity, window, fresh)
    assert machine.unexecuted("attention_append", "attention_window") == []


def check_window(machine: device.Device, capacity: int, window: int, fresh: int) -> None:
    """A row's bytes are of its position. What moves is what stays; behind that zeros, if asked for."""
    heads = 2
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
