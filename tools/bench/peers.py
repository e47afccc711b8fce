"""What ``mxort bench ops`` compares: every candidate is a row of ``PEERS``.

They multiply the same activations. Each names the weights it really multiplies by, so that it can be checked
before it is timed: no row is fast by being wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from mxort.errors import MxortError
from mxort.evaluation.turns import session_options
from mxort.formats import BLOCK_SIZE, blocks_of, dequantize_mxfp4, scale_value, unpack_nibbles
from mxort.runtime.machine import describe_machine
from mxort.runtime.op_models import MatMulMXFP4, one_node_model, random_mxfp4
from mxort.runtime.session import open_session, require_onnxruntime
from tools.bench import foreign as bench_foreign

Activation = NDArray[np.float32]
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

    def int8(self, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """float32 [rows of N, K]: mxfp4() rounded to int8 with a scale for each output column."""
        values, scales = int8_columns(self.mxfp4(rows))
        return values * scales[:, None]

    @property
    def int4_scales(self) -> NDArray[np.float32]:
        """float32 [N, ceil(K/32)]; codes go up to 8 here and up to 6 in MXFP4, so half the scale is alike."""
        return scale_value(self.scales - 1)


def int8_columns(w: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(int8 [N, K], float32 scale [N]) of float32 [N, K], symmetric."""
    scales = np.abs(w).max(axis=1) / np.float32(127)
    return np.rint(w / scales[:, None]).astype(np.int8), scales


@dataclass(frozen=True)
class Bound:
    """A candidate at work on one A: ``seconds()`` runs it once and says how long that took, ``result()`` is
    float32 [M, N] of the last run. ``kept`` is memory that the other library only refers to."""

    seconds: Callable[[], float]
    result: Callable[[], NDArray[np.float32]]
    kept: Any = None


Bind = Callable[[Activation], Bound]


@dataclass(frozen=True)
class Peer:
    """A candidate. ``make(weights, threads)`` returns what binds it to an A, and raises where this machine cannot
    run it; ``stored`` are the float32 [N, K] weights it multiplies by, None for a limit of the machine, which
    multiplies nothing and reports the time in which the limit would allow the product."""

    name: str
    make: Callable[[Weights, int], Bind]
    weight_bytes: Callable[[int, int], int]
    stored: Callable[[Weights, Rows], NDArray[np.float32]] | None
    tolerance: float = 0.0
    unit: Callable[[int], tuple[str | None, int]] = lambda m: (None, 0)
    """For M rows: what multiplies (a name of ``_native.peak_rate``), and how many products it forms for each one asked
    for."""
    default: bool = True
    threads: int = 0
    """Its own number of threads where it is not everyone's (:func:`on_threads`)."""

    @property
    def base_name(self) -> str:
        """The name without the number of threads."""
        return self.name.partition("@")[0]


def timed(run: Callable[[], Any], result: Callable[[], NDArray[np.float32]], kept: Any = None) -> Bound:
    """The Bound of a function that computes."""

    def seconds() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return Bound(seconds, result, kept)


def session_peer(model: bytes, threads: int) -> Bind:
    """onnxruntime with A and Y bound once, so that a call is as short as onnxruntime's own interface allows."""
    session = open_session(model, session_options(threads, spin=True))
    value = require_onnxruntime().OrtValue.ortvalue_from_numpy

    def bind(a: Activation) -> Bound:
        binding = session.io_binding()
        n = session.get_outputs()[0].shape[-1]
        y = value(np.zeros((len(a), n), np.float32))
        rows = value(a)  # refers to the array's memory, and the binding to that
        binding.bind_ortvalue_input("A", rows)
        binding.bind_ortvalue_output("Y", y)
        return timed(lambda: session.run_with_iobinding(binding), y.numpy, rows)

    return bind


def _mxort(activation_format: str, accuracy_level: int) -> Callable[[Weights, int], Bind]:
    def make(w: Weights, threads: int) -> Bind:
        node = MatMulMXFP4(
            w.codes, w.scales, w.k, activation_format=activation_format, accuracy_level=accuracy_level
        )
        return session_peer(node.model(), threads)

    return make


def _kernel(name: str) -> Callable[[Weights, int], Bind]:
    """A row of the kernel table without onnxruntime around it."""

    def make(w: Weights, threads: int) -> Bind:
        run = MatMulMXFP4(w.codes, w.scales, w.k).native(name)
        if run.kernel != name:
            raise MxortError("the kernel does not take this problem")
        return lambda a: timed(lambda: run(a, threads=threads), lambda: run(a))

    return make


def _float_matmul(w: Weights, threads: int) -> Bind:
    node = helper.make_node("MatMul", ["A", "W"], ["Y"])
    return session_peer(one_node_model(node, {"W": np.ascontiguousarray(w.mxfp4().T)}, w.k, w.n), threads)


def _matmul_nbits(accuracy_level: int) -> Callable[[Weights, int], Bind]:
    def make(w: Weights, threads: int) -> Bind:
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
        return session_peer(
            one_node_model(node, {"W": codes, "scales": w.int4_scales.reshape(-1)}, w.k, w.n), threads
        )

    return make


def _dynamic_int8(w: Weights, threads: int) -> Bind:
    """What onnxruntime's dynamic quantisation makes of a MatMul: A rounded to uint8 at run time, one scale for all."""
    node = helper.make_node("DynamicQuantizeMatMul", ["A", "W", "W_scale"], ["Y"], domain="com.microsoft")
    values, scales = int8_columns(w.mxfp4())
    return session_peer(
        one_node_model(node, {"W": np.ascontiguousarray(values.T), "W_scale": scales}, w.k, w.n), threads
    )


def _torch_bf16(w: Weights, threads: int) -> Bind:
    bind = bench_foreign.torch_bf16(w.mxfp4(), threads)
    return lambda a: timed(*bind(a))


def _openvino(w: Weights, threads: int) -> Bind:
    bind = bench_foreign.openvino_f4e2m1(w.codes, w.scales, w.k, threads)
    return lambda a: timed(*bind(a))


def _ggml(w: Weights, threads: int) -> Bind:
    bind = bench_foreign.ggml_mxfp4(w.codes, w.scales, w.k, threads)
    return lambda a: timed(*bind(a))


def _plain_read(weight_bytes: Callable[[int, int], int]) -> Callable[[Weights, int], Bind]:
    """Reads as many bytes as the weights have, on as many threads: what a memory-bound row can hope for."""

    def make(w: Weights, threads: int) -> Bind:
        from mxort import _native

        data = np.ones(weight_bytes(w.k, w.n), np.uint8)
        return lambda a: Bound(lambda: _native.read_seconds(data, threads), _nothing)

    return make


def _peak(unit: str) -> Callable[[Weights, int], Bind]:
    """The product at the rate of a unit that multiplies registers and nothing else."""

    def make(w: Weights, threads: int) -> Bind:
        from mxort import _native

        _native.peak_rate(unit, threads)  # raises where this CPU has none
        return lambda a: Bound(lambda: 2.0 * len(a) * w.k * w.n / _native.peak_rate(unit, threads), _nothing)

    return make


def _always(unit: str) -> Callable[[int], tuple[str | None, int]]:
    return lambda m: (unit, 1)


def _bf16(m: int) -> tuple[str | None, int]:
    """Libraries that multiply bfloat16 use the tile unit where there is one."""
    return ("amx" if "amx_bf16" in describe_machine().isa else "bf16"), 1


def _ours(activation_format: str, accuracy_level: int) -> Callable[[int], tuple[str | None, int]]:
    """By the name of the kernel that the library chooses for so many rows."""
    two_terms = activation_format == "mxfp8_e4m3" or (activation_format == "none" and accuracy_level != 4)

    def unit(m: int) -> tuple[str | None, int]:
        codes, scales = random_mxfp4(BLOCK_SIZE, BLOCK_SIZE, np.random.default_rng(0))
        node = MatMulMXFP4(
            codes, scales, BLOCK_SIZE, activation_format=activation_format, accuracy_level=accuracy_level
        )
        name = node.native().kernel_for(m)
        if "amx" in name:
            return "amx", 3 if accuracy_level == 1 else 1
        if "vnni" in name:
            return "vnni", 1 + two_terms
        is_integer = name in ("avx512_bw", "avx2_int8")  # pairs of int8 in int16: nobody measures that peak
        return (None, 0) if is_integer else ("fma", 1)

    return unit


def _nothing() -> NDArray[np.float32]:
    return np.zeros((0, 0), np.float32)


def _mxfp4_bytes(k: int, n: int) -> int:
    return n * blocks_of(k) * (BLOCK_SIZE // 2 + 1)


def _int4_bytes(k: int, n: int) -> int:
    return n * blocks_of(k) * (BLOCK_SIZE // 2 + 4)


def _bytes_each(size: int) -> Callable[[int, int], int]:
    return lambda k, n: size * n * k


def _no_bytes(k: int, n: int) -> int:
    return 0


def _our_row(name: str, activation_format: str, level: int, tolerance: float, default: bool = False) -> Peer:
    make, unit = _mxort(activation_format, level), _ours(activation_format, level)
    return Peer(name, make, _mxfp4_bytes, Weights.mxfp4, tolerance, unit, default)


PEERS: tuple[Peer, ...] = (
    Peer("ort-fp32", _float_matmul, _bytes_each(4), Weights.mxfp4, 1e-5, _always("fma")),
    Peer("ort-int4", _matmul_nbits(0), _int4_bytes, Weights.int4, 1e-5, _always("fma")),
    Peer("ort-int4-a8", _matmul_nbits(4), _int4_bytes, Weights.int4, 2e-2, _always("vnni")),
    Peer("ort-int8", _dynamic_int8, _bytes_each(1), Weights.int8, 5e-2, _always("vnni")),
    Peer("torch-bf16", _torch_bf16, _bytes_each(2), Weights.mxfp4, 5e-3, _bf16),
    Peer("openvino-mxfp4", _openvino, _mxfp4_bytes, Weights.mxfp4, 5e-3, _bf16),
    Peer("ggml-mxfp4", _ggml, _mxfp4_bytes, Weights.mxfp4, 2e-2, _always("vnni")),
    _our_row("mxort", "none", 0, 3e-3, default=True),
    _our_row("mxort-fp32", "none", 1, 1e-6),
    _our_row("mxort-int8", "none", 4, 1e-2, default=True),
    _our_row("mxort-mxfp8", "mxfp8_e4m3", 0, 5e-2),
    _our_row("mxort-mxfp6", "mxfp6_e2m3", 0, 5e-2),
    _our_row("mxort-mxfp4", "mxfp4", 0, 2e-1),
    Peer("read-mxfp4", _plain_read(_mxfp4_bytes), _mxfp4_bytes, None),
    Peer("read-fp32", _plain_read(_bytes_each(4)), _bytes_each(4), None),
    Peer("peak-fma", _peak("fma"), _no_bytes, None),
    Peer("peak-vnni", _peak("vnni"), _no_bytes, None),
    Peer("peak-bf16", _peak("bf16"), _no_bytes, None, default=False),
    Peer("peak-amx", _peak("amx"), _no_bytes, None),
)
"""The candidates; ratios refer to the first one present. Another library to compare with is one row."""


def on_threads(peer: Peer, threads: int) -> Peer:
    """``peer`` on its own number of threads, whatever the others have: "mxort@1"."""
    name = f"{peer.name}@{threads}"
    return replace(peer, name=name, make=lambda w, _: peer.make(w, threads), threads=threads)


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
