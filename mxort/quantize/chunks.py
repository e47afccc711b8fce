"""Quantising one weight of any size in chunks of rows, with its error measured on the way."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from mxort.formats import BLOCK_SIZE, WEIGHT_FORMATS, blocks_of, hadamard_rotate
from mxort.quantize.base import QuantizedWeight, Round, Settings, sums_of_rows

_CHUNK_BYTES = 16 << 20
"""float32 bytes of a chunk: small beside any model, large beside what a chunk costs to set up."""

MOST_THREADS = 4
"""Chunks in work at once: numpy's passes over them are bound by memory beyond."""

_Chunk = tuple[QuantizedWeight, float, float]

RowReader = Callable[[int, int], NDArray[np.float32]]
"""(start, stop) -> rows of W^T as float32 [stop - start, ceil(K/32)*32], C-contiguous, zeros beyond K."""


def quantize_weight(
    read_rows: RowReader, n: int, k: int, algorithm: Round, settings: Settings, rotation: int
) -> tuple[QuantizedWeight, float]:
    """Quantises W^T [n, k] after rotating it along K -> (its packed form, SQNR in dB).

    The SQNR is 10*log10(sum(w^2) / sum((w - dequantised w)^2)), taken after the rotation, which keeps both
    sums; infinite without error, NaN where the weight is not finite.
    """
    width = blocks_of(k) * BLOCK_SIZE
    codes = np.empty((n, blocks_of(k) * WEIGHT_FORMATS[settings.weight_format].block_bytes), np.uint8)
    scales = np.empty((n, blocks_of(k)), np.uint8)
    column_scale = np.empty(n, np.float32)
    signal = noise = 0.0
    note = ""
    losses: list[tuple[float, float]] = []
    step = max(1, _CHUNK_BYTES // (4 * width))

    def chunk(start: int) -> tuple[QuantizedWeight, float, float]:
        """(rows from ``start`` on, the sums of squares of their error and of themselves)."""
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity end up in the scales
            rows = hadamard_rotate(read_rows(start, min(start + step, n)), rotation)
            part = algorithm(rows, settings)
            noise, signal = sums_of_rows(rows, part)
            return part, float(noise.sum()), float(signal.sum())

    starts = range(0, n, step)
    for start, (part, error, square) in zip(starts, _in_order(chunk, starts, settings), strict=True):
        stop = min(start + step, n)
        codes[start:stop], scales[start:stop] = part.codes, part.scales
        column_scale[start:stop] = part.column_scale
        note = note or part.note
        losses += [] if part.losses is None else [part.losses]
        noise, signal = noise + error, signal + square
    sums = (sum(loss[0] for loss in losses), sum(loss[1] for loss in losses)) if losses else None
    weight = QuantizedWeight(codes, scales, column_scale, note, settings.weight_format, sums)
    return weight, _decibels(signal, noise)


def _in_order(chunk: Callable[[int], _Chunk], starts: range, settings: Settings) -> Iterator[_Chunk]:
    """The chunks one after the other, worked on by several threads where an algorithm has none of its own."""
    workers = min(len(starts), MOST_THREADS, os.cpu_count() or 1)
    if workers < 2 or settings.statistics is not None:
        yield from map(chunk, starts)
        return
    with ThreadPoolExecutor(workers) as threads:
        waiting: deque[Future[_Chunk]] = deque()
        for start in starts:
            waiting.append(threads.submit(chunk, start))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    ratio = signal / noise  # 0 where a number beyond float32 came out, as noise is infinite
    return -math.inf if ratio == 0 else 10 * math.log10(ratio)


def fitting_rotation(k: int, wanted: int, available: tuple[int, ...]) -> int:
    """The largest rotation up to ``wanted`` that divides the padded length of ``k`` elements."""
    width = blocks_of(k) * BLOCK_SIZE
    return max(size for size in available if size <= wanted and width % size == 0)
