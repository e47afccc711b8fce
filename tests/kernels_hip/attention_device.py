"""The attention kernels under test: their arguments, launches as ep/device/attention.cc makes them, and an oracle."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import device
from mxort import formats, scales

LONG, INT, UINT, FLOAT, POINTER = (
    ctypes.c_longlong,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_float,
    ctypes.c_void_p,
)
BOOL = 7  # hip::Type
ROWS, TURN = 16, 128  # of a tile; keys of a workgroup's turn
SIZES = (64, 96, 128, 256)  # of heads, that there are kernels for
FORMATS = {"mxfp8": formats.E4M3, "mxfp4": formats.E2M1}


class HeadStrides(ctypes.Structure):
    _fields_ = [("batch", LONG), ("position", LONG), ("head", LONG)]


class DeviceLengths(ctypes.Structure):
    _fields_ = [("data", POINTER), *[(n, INT) for n in ("stride", "plus", "capacity", "window", "fresh")]]


class AttentionArgs(ctypes.Structure):
    _fields_ = [
        *[(n, POINTER) for n in ("q", "k", "v", "y", "partial", "mask", "padding", "sink")],
        *[(n, HeadStrides) for n in ("q_strides", "k_strides", "v_strides", "y_strides")],
        *[
            (n, LONG)
            for n in ("mask_batch", "mask_head", "mask_position", "padding_batch", "padding_position")
        ],
        ("lengths", DeviceLengths),
        *[(n, UINT) for n in ("batch", "heads", "kv_heads", "group", "length", "keys")],
        *[(n, UINT) for n in ("head_size", "value_size", "tiles", "splits")],
        *[(n, INT) for n in ("causal", "from_end", "offset", "window", "smooth")],
        ("mask_keys", UINT),
        *[(n, INT) for n in ("mask_key", "mask_type", "type")],
        *[(n, FLOAT) for n in ("scale", "softcap", "filter")],
    ]


@dataclass
class Problem:
    """Attention of queries [batch, length, heads, size] over keys and values [batch, kv heads, keys, size]."""

    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]
    dtype: str = "float"
    scale: float = 0.125
    softcap: float = 0
    causal: bool = False
    window: int = 0
    offset: int | None = 0  # None: what is left of the keys before the queries
    lengths: list[int] | None = None
    holds: tuple[int, int, int] | None = (
        None  # capacity, window and new positions of a cache that holds a window
    )
    mask: NDArray[Any] | None = None  # broadcasts to [batch, heads, length, keys]
    padding: NDArray[np.int32] | None = None  # [batch, keys]
    sink: NDArray[np.float32] | None = None
    cache: str = ""  # mxfp8, mxfp4: k and v are quantised

    def filled(self, batch: int) -> int:
        """Keys there are: of a cache that holds a window fewer, as positions coming one after the other leave it."""
        assert self.lengths is not None
        if self.holds is None:
            return self.lengths[batch]
        capacity, window, fresh = self.holds
        held = 0
        for _ in range(self.lengths[batch] - fresh):
            held = window if held == capacity else held + 1
        return held + fresh

    def rows(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bytes of a quantised cache: the codes of a head at a position, then their scales."""
        codes, exponents = scales.quantize_blocks(
            formats.to_blocks(x.reshape(-1, x.shape[-1])), FORMATS[self.cache], "even"
        )
        codes = codes.reshape(len(codes), -1)
        if self.cache == "mxfp4":
            codes = codes[:, ::2] | codes[:, 1::2] << 4
        return np.concatenate([codes, exponents], axis=1).astype(np.uint8).reshape(*x.shape[:-1], -1)

    def cached(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """k or v as the cache holds them."""
        if not self.cache:
            return self.numbers(x).astype(np.float64)
        element = FORMATS[self.cache]
        codes, exponents = scales.quantize_blocks(
            formats.to_blocks(x.reshape(-1, x.shape[-1])), element, "even"
        )
        values = element.decode(codes).astype(np.float64) * formats.scale_value(exponents)[..., None].astype(
            np.float64
        )
        return values.reshape(x.shape)

    def numbers(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x rounded to the type."""
        return device.from_bytes(device.to_bytes(np.ascontiguousarray(x), self.dtype), self.dtype)


def shapes(p: Problem) -> tuple[int, int, int, int, int]:
    batch, length, heads, _ = p.q.shape
    return batch, length, heads, p.k.shape[1], p.k.shape[2]


def padded_size(p: Problem) -> int:
    return next(s for s in SIZES if s >= max(p.q.shape[-1], p.v.shape[-1]) and not (p.cache and s == 96))


def run(machine: device.Device, p: Problem, splits: int = 1, prefill: bool = False) -> NDArray[np.float32]:
    """y [batch, length, heads, value size] of the kernels for few rows, or for many."""
    batch, length, heads, kv_heads, keys = shapes(p)
    size, value_size, group = p.q.shape[-1], p.v.shape[-1], heads // kv_heads
    kept: list[Any] = []

    def send(x: NDArray[Any] | None, typed: bool = True) -> int | None:
        if x is None:
            return None
        x = np.ascontiguousarray(x)
        kept.append(machine.sim.to_device(device.to_bytes(x, p.dtype) if typed else x))
        return kept[-1].ptr

    a = AttentionArgs(scale=p.scale, softcap=p.softcap, filter=-10000.0, causal=p.causal, window=p.window)
    a.type = list(device.TYPES).index(p.dtype)
    k, v = (p.rows(p.k), p.rows(p.v)) if p.cache else (p.k, p.v)
    a.q, a.k, a.v = send(p.q), send(k, not p.cache), send(v, not p.cache)
    a.q_strides = HeadStrides(length * heads * size, heads * size, size)
    a.k_strides, a.v_strides = (
        HeadStrides(kv_heads * keys * row, row, keys * row) for row in (k.shape[-1], v.shape[-1])
    )
    a.y_strides = HeadStrides(length * heads * value_size, heads * value_size, value_size)
    a.batch, a.heads, a.kv_heads, a.group, a.length, a.keys = batch, heads, kv_heads, group, length, keys
    a.head_size, a.value_size, a.splits = size, value_size, splits
    a.tiles = -(-length * group // ROWS)
    a.from_end, a.offset = int(p.offset is None), p.offset or 0
    if p.lengths is not None:
        a.lengths = DeviceLengths(
            send(np.array(p.lengths, np.int32) - 1, typed=False), 1, 1, *(p.holds or ())
        )
    if p.mask is not None:
        mask = p.mask.reshape((1,) * (4 - p.mask.ndim) + p.mask.shape)
        is_bool = mask.dtype == np.bool_
        a.mask = send(mask.astype(np.uint8) if is_bool else mask, typed=not is_bool)
        a.mask_type = BOOL if is_bool else a.type
        strides = [0 if n == 1 else s // mask.itemsize for n, s in zip(mask.shape, mask.strides, strict=True)]
        a.mask_batch, a.mask_head, a.mask_position, a.mask_key = strides
        a.mask_keys = mask.shape[-1] if strides[-1] else keys
    if p.padding is not None:
        a.padding, a.padding_batch = send(p.padding, typed=False), keys
    a.sink = send(p.sink)
    y = machine.sim.empty(
        (batch, length, heads, value_size), np.uint16 if p.dtype == "bfloat16" else device.TYPES[p.dtype]
    )
    a.y = y.ptr
    kept.append(y)
    if splits > 1:
        count = batch * kv_heads * a.tiles * splits * ROWS * (value_size + 2)
        kept.append(machine.sim.empty((count,), np.float32))
        a.partial = kept[-1].ptr
    name = f"{p.dtype}_{padded_size(p)}"
    if prefill:
        a.tiles = -(-length * group // prefill_rows(p))
        grid = (a.tiles, batch * kv_heads)
        machine.module("attention_prefill").launch(
            f"prefill_{name}", grid, (2 * prefill_rows(p),), [bytes(a)]
        )
    else:
        grid = (a.tiles * splits, batch * kv_heads)
        own = (
            ("attention_mx", f"attention_{p.cache}_{padded_size(p)}")
            if p.cache
            else ("attention", f"attention_{name}")
        )
        machine.module(own[0]).launch(own[1], grid, (256,), [bytes(a)])
        if splits > 1:
            machine.module("attention").launch(
                "attention_merge", (a.tiles, batch * kv_heads), (256,), [bytes(a)]
            )
    out = device.from_bytes(y.numpy(), p.dtype)
    for array in kept:
        array.free()
    return out


def prefill_rows(p: Problem) -> int:
    """Rows of a workgroup of attention_prefill, 32 a wave, as ep/kernels/hip/attention_prefill.hip says."""
    return 256 if p.dtype != "float" and padded_size(p) in (64, 128) else 128


def full_mask(p: Problem, keys: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """What the mask lets be seen, and what it adds, [.., .., length, keys]."""
    if p.mask is None:
        return np.ones((1, 1, 1, keys), bool), np.zeros((1, 1, 1, keys))
    mask = p.mask.reshape((1,) * (4 - p.mask.ndim) + p.mask.shape)
    if mask.shape[-1] not in (1, keys):
        fill = False if mask.dtype == np.bool_ else -np.inf
        mask = np.pad(mask, [(0, 0)] * 3 + [(0, keys - mask.shape[-1])], constant_values=fill)
    if mask.dtype == np.bool_:
        return mask, np.zeros(mask.shape)
    return np.ones(mask.shape, bool), p.numbers(mask.astype(np.float32)).astype(np.float64)


def seen_keys(p: Problem) -> NDArray[np.bool_]:
    """[batch, 1, length, keys], as far as lengths, causality and the window go."""
    batch, length, _, _, keys = shapes(p)
    seen = np.ones((batch, 1, length, keys), bool)
    position, key = np.arange(length)[:, None], np.arange(keys)
    for b in range(batch):
        have = keys if p.lengths is None else p.filled(b)
        seen[b] &= key < have
        last = position + (have - length if p.offset is None else p.offset)
        if p.causal:
            seen[b] &= key <= last
        if p.causal and p.window:
            seen[b] &= key > last - p.window
    return seen


def expected(p: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """y in double, and sum of weight * |v|, which its errors are measured by."""
    _, _, heads, kv_heads, keys = shapes(p)
    q = p.numbers(p.q).astype(np.float64).transpose(0, 2, 1, 3)
    k, v = (np.repeat(p.cached(x), heads // kv_heads, axis=1) for x in (p.k, p.v))
    with np.errstate(invalid="ignore", over="ignore"):
        s = q @ k.transpose(0, 1, 3, 2) * p.scale
        if p.softcap:
            s = p.softcap * np.tanh(s / p.softcap)
        seen, added = full_mask(p, keys)
        s = s + added
        if p.padding is not None:
            s = s + np.where(p.padding == 0, -10000.0, 0.0)[:, None, None]
        s = np.where(seen & seen_keys(p), s, -np.inf)
        sink = (
            np.array(-np.inf) if p.sink is None else p.numbers(p.sink).astype(np.float64)[None, :, None, None]
        )
        largest = np.maximum(np.max(s, axis=-1, keepdims=True, initial=-np.inf), sink)
        largest = np.where(np.isneginf(largest), 0, largest)
        w = np.exp(s - largest)
        total = w.sum(-1, keepdims=True) + np.exp(sink - largest)
        w = np.where(total == 0, 0, w / np.where(total == 0, 1, total))
        return (w @ v).transpose(0, 2, 1, 3), (w @ np.abs(v)).transpose(0, 2, 1, 3)
