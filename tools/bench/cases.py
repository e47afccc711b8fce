"""The measurements that ``mxort bench bounds`` compares with its bounds: one row of CASES each.

A case runs alone in a process of its own, so that it may be measured again without the others, and one library's
threads never meet another case's.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mxort.conversion.pipeline import convert
from mxort.errors import MxortError
from mxort.evaluation import peers
from mxort.evaluation.model_bench import bench_models
from mxort.evaluation.turns import interleave, pin, session_options
from mxort.runtime.machine import Machine, describe_machine, status_bytes
from mxort.runtime.op_models import MatMulMXFP4, one_node_model, random_mxfp4
from mxort.runtime.session import one_line, open_session, require_onnxruntime
from tools.bench import experts
from tools.bench.ops import OpBench, bench_ops
from tools.bench.peers import PEERS, Peer, choose_peers, on_threads, session_peer

LARGE = 4096
SMALL_SHAPES = ((384, 1536), (576, 576), (768, 3072))
SMALL_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Row:
    """One candidate of a case: the times of its turns in milliseconds, in their order, and what else is known of it
    (fields as in bench_ops.OpResult and bench_models.ModelResult)."""

    peer: str
    shape: str
    turns_ms: tuple[float, ...]
    error: float | None = None
    of_read: float | None = None
    of_peak: float | None = None
    unit: str | None = None
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Result of a case; ``values`` are single figures by name."""

    machine: Machine
    onnxruntime: str
    date: str
    seconds: float
    rows: tuple[Row, ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Measured:
        """What to_dict() wrote."""
        machine = Machine(**fields["machine"] | {"isa": tuple(fields["machine"]["isa"])})
        rows = tuple(Row(**row | {"turns_ms": tuple(row["turns_ms"])}) for row in fields["rows"])
        return Measured(**fields | {"machine": machine, "rows": rows})


@dataclass(frozen=True)
class Size:
    """How much is measured. ``large`` is K = N of the operators, ``seconds`` bounds the rounds of one shape."""

    runs: int = 40
    seconds: float = 6.0
    large: int = LARGE
    small_shapes: tuple[tuple[int, int], ...] = SMALL_SHAPES
    small_rows: tuple[int, ...] = SMALL_ROWS
    prompt: int = 512
    generate: int = 16
    experts: experts.Layer = field(default_factory=experts.Layer)


@dataclass(frozen=True)
class Place:
    """Where the models are (samples/models.py), and where a benchmark may leave converted ones."""

    models: Path
    work: Path


_Parts = tuple[tuple[Row, ...], dict[str, float], dict[str, str]]


def _from_ops(bench: OpBench) -> _Parts:
    rows = tuple(
        Row(
            peer=row.peer,
            shape=f"{row.M}x{row.K}x{row.N}",
            turns_ms=row.turns_ms,
            error=row.error,
            of_read=row.of_read,
            of_peak=row.of_peak,
            unit=row.unit,
        )
        for row in bench.rows
    )
    return rows, {}, {skip.peer: skip.reason for skip in bench.skipped}


def _large(rows: Sequence[int], size: Size, place: Place, *, cold: bool = False) -> _Parts:
    pin(1)
    shapes = [(m, size.large, size.large) for m in rows]
    return _from_ops(
        bench_ops(shapes, PEERS, threads=1, cold=cold, runs=size.runs, warmup=1, max_seconds=size.seconds)
    )


_SMALL_PEERS = ("ort-fp32", "mxort", "mxort-int8", "mxort-mxfp6", "read-mxfp4", "peak-vnni", "peak-amx")


def _small(size: Size, place: Place) -> _Parts:
    pin(1)
    names = [*_SMALL_PEERS, "peak-fma"]
    shapes = [(m, k, n) for k, n in size.small_shapes for m in size.small_rows]
    seconds = size.seconds / 8
    return _from_ops(
        bench_ops(shapes, choose_peers(names), threads=1, runs=size.runs, warmup=1, max_seconds=seconds)
    )


def _two_threads(size: Size, place: Place) -> _Parts:
    """Two threads and one, in turns on the same cores."""
    pin(2)
    if describe_machine().cores < 2:
        raise MxortError("two threads need two cores, and this process may use one")
    peers: list[Peer] = []
    for peer in choose_peers(_SMALL_PEERS):
        peers += [on_threads(peer, 1), on_threads(peer, 2)]
    shapes = [(m, size.large, size.large) for m in (1, 256)]
    return _from_ops(
        bench_ops(shapes, peers, threads=2, runs=size.runs, warmup=1, max_seconds=2 * size.seconds)
    )


def _limits(size: Size, place: Place) -> _Parts:
    """The machine alone: a plain read of the packed weights and the peaks, on one thread and on all."""
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    peers = [peer for peer in PEERS if peer.stored is None and peer.name != "read-fp32"]
    cores = describe_machine().cores
    for threads in dict.fromkeys((1, cores)):
        for cold in (False, True):
            bench = bench_ops(
                [(1, size.large, size.large)],
                [peer for peer in peers if peer.name.startswith("read") or not cold],
                threads=threads,
                cold=cold,
                runs=size.runs,
                warmup=1,
                max_seconds=size.seconds / 4,
            )
            missing |= {skip.peer: skip.reason for skip in bench.skipped}
            for row in bench.rows:
                if row.weight_bytes:
                    values[f"{row.peer} {'cold' if cold else 'hot'} GB/s, {threads} threads"] = row.gb_per_s
                else:
                    values[f"{row.peer} GFLOP/s, {threads} threads"] = row.gflop_per_s
    return (), values, missing


def _experts(rows: int, size: Size, place: Place) -> _Parts:
    """A layer of experts: as many turns as fit, each with logits of its own."""
    pin(1)
    layer = size.experts
    weights, turn = experts.Weights(layer), experts.Turn(layer, rows)
    seconds: dict[str, experts.Seconds] = {}
    missing: dict[str, str] = {}
    for name, make in experts.CANDIDATES.items():
        try:
            seconds[name] = make(weights, turn, 1)
        except Exception as error:  # what a library cannot run
            missing[name] = one_line(error)
    turns = [
        _with_new_logits(turn, seconds["mxort-int8"]),
        *(s for n, s in seconds.items() if n != "mxort-int8"),
    ]
    times = interleave(turns, runs=size.runs, warmup=1, max_seconds=3 * size.seconds)
    shape = f"{rows}x{layer.width}x{layer.width}"
    rows_of = tuple(
        Row(name, shape, tuple(round(s * 1e3, 6) for s in t)) for name, t in zip(seconds, times, strict=True)
    )
    return rows_of, {}, missing


def _with_new_logits(turn: experts.Turn, seconds: experts.Seconds) -> experts.Seconds:
    def first() -> float:
        turn.next()
        return seconds()

    return first


_CALLS = 200  # of a turn: a call takes microseconds


def _overhead(size: Size, place: Place) -> _Parts:
    """The smallest operator beside an Identity node of the same input, in turns."""
    pin(1)
    k, n = 32, 16
    codes, scales = random_mxfp4(k, n, np.random.default_rng(0))
    models = {
        "identity": one_node_model(helper.make_node("Identity", ["A"], ["Y"]), {}, k, k),
        "mxort": MatMulMXFP4(codes, scales, k).model(),
    }
    a = np.zeros((1, k), np.float32)
    bounds = [session_peer(model, 1)(a) for model in models.values()]
    turns = [lambda b=b: float(np.median([b.seconds() for _ in range(_CALLS)])) for b in bounds]  # type: ignore[misc]
    times = interleave(turns, runs=size.runs, warmup=2, max_seconds=size.seconds)
    rows = tuple(
        Row(peer, f"1x{k}x{n}", tuple(round(s * 1e3, 6) for s in seconds))
        for peer, seconds in zip(models, times, strict=True)
    )
    over = float(np.median(np.subtract(times[1], times[0]))) * 1e6
    return rows, {"microseconds above Identity": over}, {}


_LAYERS = 8


def _memory(size: Size, place: Place) -> _Parts:
    """Anonymous memory of two sessions of one model, its weights in a file beside it."""
    options = session_options(1)
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        packed = _write_chain(path, size.large)
        tiny = open_session(_tiny_model(), options)  # the library and onnxruntime themselves
        before = status_bytes("RssAnon")
        first = open_session(path, options)
        loaded = status_bytes("RssAnon")
        second = open_session(path, options)
        twice = status_bytes("RssAnon")
        del tiny, first, second
    return (
        (),
        {
            "packed bytes": float(packed),
            "anonymous / packed": (loaded - before) / packed,
            "second session / packed": (twice - loaded) / packed,
        },
        {},
    )


def _tiny_model() -> bytes:
    return MatMulMXFP4(*random_mxfp4(32, 16, np.random.default_rng(0)), 32).model()


def _write_chain(path: Path, k: int) -> int:
    """A model of _LAYERS products one after the other, with external data; the bytes of its codes and scales."""
    nodes, constants = [], []
    packed = 0
    for layer in range(_LAYERS):
        codes, scales = random_mxfp4(k, k, np.random.default_rng(layer))
        one = onnx.load_model_from_string(MatMulMXFP4(codes, scales, k).model())
        (node,) = one.graph.node
        for constant in one.graph.initializer:
            constant.name = f"{constant.name}.{layer}"
            constants.append(constant)
        node.input[:] = [f"x{layer}", *(f"{name}.{layer}" for name in node.input[1:])]
        node.output[:] = [f"x{layer + 1}"]
        nodes.append(node)
        packed += codes.nbytes + scales.nbytes
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["M", k])],
        [helper.make_tensor_value_info(f"x{_LAYERS}", TensorProto.FLOAT, ["M", k])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=one.opset_import, ir_version=one.ir_version)
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data")
    return packed


# whole models

_VARIANTS: dict[str, Callable[[Path, Path], None]] = {
    "mxort": lambda source, target: _convert(source, target, 3),
    "mxort-int8": lambda source, target: _convert(source, target, 4),
    "ort-int4-a8": lambda source, target: peers.quantize_int4(source, target),
}
"""What stands beside the fp32 model, by the names of the operator's candidates: how it is made."""


def _convert(source: Path, target: Path, accuracy_level: int) -> None:
    convert(source, target, accuracy_level=accuracy_level)


def forget_models(place: Place) -> None:
    """Removes the converted models, so that they are made by the converter as it is now."""
    for case in CASES.values():
        if case.model:
            shutil.rmtree(place.work / case.model, ignore_errors=True)


def _variants(name: str, place: Place) -> dict[str, Path]:
    """The fp32 model and its variants, made where they are older than it or not there."""
    source = place.models / name / "model.onnx"
    if not source.is_file():
        raise MxortError(f"{source}: no such model (python samples/models.py {name})")
    folder = place.work / name
    paths = {"ort-fp32": source}
    for variant, make in _VARIANTS.items():
        target = folder / variant / "model.onnx"
        if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
            shutil.rmtree(target.parent, ignore_errors=True)
            target.parent.mkdir(parents=True)
            make(source, target)
        paths[variant] = target
    return paths


def _whole_model(name: str, prompt: int | None, size: Size, place: Place) -> _Parts:
    paths = _variants(name, place)
    bench = bench_models(
        list(paths.values()),
        runs=size.runs,
        warmup=1,
        threads=1,
        prompt=prompt or size.prompt,
        generate=size.generate,
        max_seconds=4 * size.seconds,
        profile=True,
    )
    rows, values = [], {}
    for variant, model in zip(paths, bench.models, strict=True):
        for kind, turns in model.turns_ms.items():
            rows.append(Row(variant, kind, turns, shares=model.node_shares.get(kind, {})))
        values[f"{variant} file MB"] = model.file_bytes / 1e6
        values[f"{variant} anonymous MB"] = model.anonymous_bytes / 1e6
        values[f"{variant} load s"] = model.load_seconds
        for label, rate in (("prefill", model.prefill_tokens_per_s), ("decode", model.decode_tokens_per_s)):
            if rate is not None:
                values[f"{variant} {label} tokens/s"] = rate
    return tuple(rows), values, {}


@dataclass(frozen=True)
class Case:
    """``model`` is what a case of whole models runs: that starts processes of its own, as the others do not."""

    what: str
    run: Callable[[Size, Place], _Parts]
    model: str = ""


CASES: dict[str, Case] = {
    "m1-m16": Case("K = N = 4096, hot", partial(_large, (1, 4, 16))),
    "m64": Case("K = N = 4096, hot", partial(_large, (64,))),
    "m256-m512": Case("K = N = 4096, hot", partial(_large, (256, 512))),
    "cold": Case("K = N = 4096, weights from memory", partial(_large, (1,), cold=True)),
    "threads": Case("K = N = 4096, hot, two threads and one", _two_threads),
    "limits": Case("plain read and register peaks", _limits),
    "small": Case("small layers, hot", _small),
    "experts": Case("gpt-oss-20b's experts, one row, weights from memory", partial(_experts, 1)),
    "experts-256": Case("gpt-oss-20b's experts, 256 rows", partial(_experts, 256)),
    "overhead": Case("one call of the smallest operator", _overhead),
    "memory": Case(f"{_LAYERS} layers of K = N = 4096 with external data", _memory),
    "minilm": Case("paraphrase-MiniLM-L3-v2, 1 x 128 tokens", partial(_whole_model, "minilm", 128), "minilm"),
    "smollm2": Case(
        "SmolLM2-135M, prompt of 512 tokens; tokens one by one from an empty cache",
        partial(_whole_model, "smollm2", None),
        "smollm2",
    ),
}
"""On one thread unless said. Operators and models are measured with the settings of onnxruntime's default session."""


def measure(name: str, size: Size, place: Place) -> Measured:
    """Runs a case. Raises MxortError where this machine cannot, with the reason."""
    case = CASES[name]
    machine, start = describe_machine(), time.perf_counter()
    if not case.model:
        context = multiprocessing.get_context("spawn")  # nothing of this process's libraries and affinity
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows, values, missing = pool.submit(_run, name, size, place).result()
    else:
        rows, values, missing = case.run(size, place)
    return Measured(
        machine=machine,
        onnxruntime=require_onnxruntime().__version__,
        date=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        seconds=time.perf_counter() - start,
        rows=rows,
        values=values,
        missing=missing,
    )


def _run(name: str, size: Size, place: Place) -> _Parts:
    return CASES[name].run(size, place)
