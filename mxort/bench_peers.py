"""What ``mxort bench ops`` compares: every candidate is a row of ``PEERS``.

They multiply the same activations. Each names the weights it really multiplies by, so that it can be checked
before it is timed: no row is fast by being wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from mxort.bench import session_options
from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE, blocks_of, dequantize_mxfp4, scale_value, unpack_nibbles
from mxort.op_models import MatMulMXFP4, one_node_model, random_mxfp4
from mxort.session import open_session

Activation = NDArray[np.float32]
Run = Callable[[Activation], Any]
Rows = slice | NDArray[np.intp]


class Weights:
    """Random weights of one candidate: MXFP4 codes and scales, which int4 rows read as theirs.

    Every candidate has its own: the library packs equal weights once per process, and a candidate that ran
    after another on the same bytes would find them in the cache.
    """

    def __init__(self, k: int, n: int, seed: Sequence[int]) -> None:
        self.k, self.n = k, n
        self.codes, self.scales = random_mxfp4(k, n, np.random.default_rng(seed))

    def mxfp4(self, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """float32 [rows of N, K]: codes and scales read as MXFP4."""
        return dequantize_mxfp4(self.codes[rows], self.scales[rows], self.k)

    def int4(self, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """float32 [rows of N, K]: the same bytes read as MatMulNBits does, (code - 8) * scale."""
        scales = self.int4_scales[rows]
        values = (unpack_nibbles(self.codes[rows]).astype(np.float32) - 8).reshape(*scales.shape, BLOCK_SIZE)
        return (values * scales[..., None]).reshape(len(scales), -1)[:, : self.k]

    @property
    def int4_scales(self) -> NDArray[np.float32]:
        """float32 [N, ceil(K/32)]; codes go up to 8 here and up to 6 in MXFP4, so half the scale is alike."""
        return scale_value(self.scales - 1)


@dataclass(frozen=True)
class Peer:
    """A candidate. ``make(weights, threads)`` returns what runs it and raises where this machine cannot;
    ``stored`` are the float32 [N, K] weights it multiplies by, None for a row that multiplies nothing."""

    name: str
    make: Callable[[Weights, int], Run]
    weight_bytes: Callable[[int, int], int]
    stored: Callable[[Weights, Rows], NDArray[np.float32]] | None
    tolerance: float = 0.0
    default: bool = True


def _in_session(model: bytes, threads: int) -> Run:
    session = open_session(model, session_options(threads))
    return lambda a: session.run(None, {"A": a})[0]


def _mxort(activation_format: str, accuracy_level: int) -> Callable[[Weights, int], Run]:
    def make(w: Weights, threads: int) -> Run:
        node = MatMulMXFP4(
            w.codes, w.scales, w.k, activation_format=activation_format, accuracy_level=accuracy_level
        )
        return _in_session(node.model(), threads)

    return make


def _kernel(name: str) -> Callable[[Weights, int], Run]:
    """A row of the kernel table without onnxruntime around it."""

    def make(w: Weights, threads: int) -> Run:
        run = MatMulMXFP4(w.codes, w.scales, w.k).native(name)
        if run.kernel != name:
            raise MxortError("the kernel does not take this problem")
        return lambda a: run(a, threads=threads)

    return make


def _float_matmul(w: Weights, threads: int) -> Run:
    node = helper.make_node("MatMul", ["A", "W"], ["Y"])
    return _in_session(one_node_model(node, {"W": np.ascontiguousarray(w.mxfp4().T)}, w.k, w.n), threads)


def _matmul_nbits(accuracy_level: int) -> Callable[[Weights, int], Run]:
    def make(w: Weights, threads: int) -> Run:
        node = helper.make_node(
            "MatMulNBits",
            ["A", "W", "scales"],
            ["Y"],
            domain="com.microsoft",
            K=w.k,
            N=w.n,
            bits=4,
            block_size=BLOCK_SIZE,
            accuracy_level=accuracy_level,
        )
        codes = w.codes.reshape(w.n, blocks_of(w.k), -1)
        return _in_session(
            one_node_model(node, {"W": codes, "scales": w.int4_scales.reshape(-1)}, w.k, w.n), threads
        )

    return make


def _plain_read(weight_bytes: Callable[[int, int], int]) -> Callable[[Weights, int], Run]:
    """Reads as many bytes as the weights have and hardly touches them: what a memory-bound row can hope for.

    On one thread or on all, whichever is faster here: handing work to a Python thread costs a small read, and
    one core may not saturate the memory.
    """

    def make(w: Weights, threads: int) -> Run:
        data = np.ones(weight_bytes(w.k, w.n) // 8 + 1, np.int64)
        parts = np.array_split(data, threads)
        pool = ThreadPoolExecutor(threads)  # numpy lets go of the interpreter lock while it reduces
        return min((lambda a: data.max(), lambda a: list(pool.map(np.max, parts))), key=_cold_seconds)

    return make


def _cold_seconds(read: Callable[[Any], Any]) -> float:
    """Best of a few runs, each after something larger than most caches went through them."""
    other = np.ones(_LARGER_THAN_CACHES // 8, np.int64)
    times = []
    for _ in range(5):
        other.max()
        start = time.perf_counter()
        read(None)
        times.append(time.perf_counter() - start)
    return min(times)


_LARGER_THAN_CACHES = 128 << 20


def _mxfp4_bytes(k: int, n: int) -> int:
    return n * blocks_of(k) * (BLOCK_SIZE // 2 + 1)


def _int4_bytes(k: int, n: int) -> int:
    return n * blocks_of(k) * (BLOCK_SIZE // 2 + 4)


def _float_bytes(k: int, n: int) -> int:
    return 4 * n * k


PEERS: tuple[Peer, ...] = (
    Peer("ort-fp32", _float_matmul, _float_bytes, Weights.mxfp4, 1e-5),
    Peer("ort-int4", _matmul_nbits(0), _int4_bytes, Weights.int4, 1e-5),
    Peer("ort-int4-a8", _matmul_nbits(4), _int4_bytes, Weights.int4, 2e-2),
    Peer("mxort", _mxort("none", 0), _mxfp4_bytes, Weights.mxfp4, 3e-3),
    Peer("mxort-fp32", _mxort("none", 1), _mxfp4_bytes, Weights.mxfp4, 1e-6, default=False),
    Peer("mxort-int8", _mxort("none", 4), _mxfp4_bytes, Weights.mxfp4, 1e-2),
    Peer("mxort-mxfp8", _mxort("mxfp8_e4m3", 0), _mxfp4_bytes, Weights.mxfp4, 5e-2, default=False),
    Peer("mxort-mxfp6", _mxort("mxfp6_e2m3", 0), _mxfp4_bytes, Weights.mxfp4, 5e-2, default=False),
    Peer("mxort-mxfp4", _mxort("mxfp4", 0), _mxfp4_bytes, Weights.mxfp4, 2e-1, default=False),
    Peer("read-mxfp4", _plain_read(_mxfp4_bytes), _mxfp4_bytes, None),
    Peer("read-fp32", _plain_read(_float_bytes), _float_bytes, None),
)
"""The candidates; ratios refer to the first one present. Another library to compare with is one row."""


def choose_peers(names: Sequence[str] = (), *, kernels: bool = False) -> tuple[Peer, ...]:
    """The peers called ``names`` ("all": every one) in the order of PEERS; without names the default ones.

    ``kernels`` adds the rows of the library's kernel table that this CPU runs. Raises MxortError for an
    unknown name.
    """
    table = PEERS
    if kernels:
        table += tuple(
            Peer(f"kernel:{name}", _kernel(name), _mxfp4_bytes, Weights.mxfp4, 3e-3)
            for name in kernel_names()
        )
    known = [peer.name for peer in table]
    if "all" in names:
        names = known
    if unknown := next((name for name in names if name not in known), None):
        raise MxortError(f"unknown peer: got {unknown!r}, expected one of {', '.join(known)}")
    return tuple(p for p in table if p.name in names or (not names and p.default))


def kernel_names() -> list[str]:
    """Kernels of the library that this CPU runs; not the reference, which is there to be right, not fast."""
    from mxort import _native

    table = _native.describe()["kernels"]
    usable = (row for row in table if row["available"] and "mxfp4" in row["weight_formats"])
    return [row["name"] for row in usable if row["name"] != "reference"]
