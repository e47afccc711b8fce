"""Whole models in turns, each in a process of its own: latency, tokens per second of decoders, memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mxort.calibration.example_inputs import (
    Inputs,
    InputSource,
    check_inputs,
    hint,
    inputs_for,
    sliding_caches,
)
from mxort.converters import model_io
from mxort.errors import MxortError
from mxort.evaluation import caches, gguf_runs, openvino_runs
from mxort.evaluation.model_runs import is_decoder, make_runner, node_shares
from mxort.evaluation.turns import Timing, interleave, pin, session_options, summarize
from mxort.progress import Progress, silent
from mxort.runtime.machine import Machine, describe_machine, status_bytes
from mxort.runtime.session import one_line, open_session, require_onnxruntime


@dataclass(frozen=True)
class ModelResult:
    """One model of a comparison, in a process of its own.

    ``timing`` is one run: for a decoder with a KV cache the prompt, from an empty cache. ``decode`` is one generated
    token, the median of a turn's tokens, which begin with an empty cache. ``base_rss_bytes`` is what Python, numpy and
    onnxruntime take before the model is loaded, ``anonymous_bytes`` what loading adds to the memory that is no mapping
    of a file. ``node_shares`` are parts of the time by operator, of "run" and "decode", where they were asked for.
    ``turns_ms`` are the times of the rounds.
    """

    model: str
    file_bytes: int
    load_seconds: float
    timing: Timing
    decode: Timing | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    base_rss_bytes: int
    peak_rss_bytes: int
    anonymous_bytes: int
    node_shares: dict[str, dict[str, float]]
    turns_ms: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class ModelBench:
    """Result of :func:`bench_models`; ratios are to the first model."""

    machine: Machine
    onnxruntime: str
    threads: int
    inputs: dict[str, str]
    models: tuple[ModelResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return asdict(self)


def bench_models(
    models: Sequence[str | os.PathLike[str]],
    inputs: InputSource | None = None,
    *,
    runs: int = 20,
    warmup: int = 3,
    threads: int = 0,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    prompt: int = 0,
    generate: int = 32,
    max_seconds: float = float("inf"),
    profile: bool = False,
    progress: Progress | None = None,
) -> ModelBench:
    """Times the models in turns on the same inputs, each in a process of its own.

    Decoders with a KV cache (inputs past_key_values.*, outputs present.*) run ``prompt`` tokens where no inputs are
    given (0: as many as are made up), and in another turn ``generate`` single tokens; behind the first model there may
    be GGUF files of decoders, which llama.cpp runs, and OpenVINO's own files (.xml). Raises
    MxortError for models that cannot be opened or run and for inputs that do not fit every model.
    """
    paths = [Path(model) for model in models]
    report = progress or silent
    report("reading", 0.0)
    sources = [model_io.load(path) for path in paths if not _is_foreign(path)]
    if _is_foreign(paths[0]):
        kind = paths[0].suffix.removeprefix(".")
        raise MxortError(
            f"{paths[0]}: the first model gives the inputs: got a .{kind}, expected an ONNX file"
        )
    dims = {**_prompt_dims(sources[0].model, prompt), **(dims or {})}
    feeds = inputs_for(sources[0].model, sources[0].name, inputs, seed=seed, dims=dims)
    for source in sources[1:]:
        check_inputs(caches.fitted(feeds, caches.rows_of_model(source.model)), source.model, source.name)
    if any(path.suffix == gguf_runs.SUFFIX for path in paths) and not is_decoder(feeds):
        raise MxortError(
            f"{sources[0].name}: a GGUF is compared with decoders that have a KV cache, got none"
        )
    sizes = iter([source.nbytes for source in sources])
    file_bytes = [_FOREIGN[path.suffix][0](path) if _is_foreign(path) else next(sizes) for path in paths]
    job = _Job(feeds, threads, generate, sliding_caches(sources[0].model), hint(inputs))
    del sources
    kinds = ("run", "decode") if is_decoder(feeds) and generate else ("run",)
    with _workers(paths, job) as workers:
        loaded = [worker.receive() for worker in workers]
        times = interleave(
            [lambda w=worker, k=kind: w.seconds(k) for kind in kinds for worker in workers],  # type: ignore[misc]
            runs=runs,
            warmup=warmup,
            max_seconds=max_seconds,
            on_round=lambda done: report(f"round {done} of {runs}", done / runs),
        )
        memory = [worker.ask("memory") for worker in workers]
        shares = [worker.ask("profile") if profile else {} for worker in workers]
    by_kind = {kind: times[i * len(paths) : (i + 1) * len(paths)] for i, kind in enumerate(kinds)}
    tokens = feeds["input_ids"].shape[-1] if len(kinds) > 1 else None
    results = []
    for i, path in enumerate(paths):
        timings = {kind: summarize(measured[i], measured[0]) for kind, measured in by_kind.items()}
        decode = timings.get("decode")
        results.append(
            ModelResult(
                model=str(path),
                file_bytes=file_bytes[i],
                load_seconds=loaded[i]["seconds"],
                timing=timings["run"],
                decode=decode,
                prefill_tokens_per_s=tokens / timings["run"].p50_ms * 1e3 if tokens else None,
                decode_tokens_per_s=1e3 / decode.p50_ms if decode else None,
                base_rss_bytes=loaded[i]["base"],
                peak_rss_bytes=memory[i],
                anonymous_bytes=loaded[i]["anonymous"],
                node_shares=shares[i],
                turns_ms={k: tuple(round(s * 1e3, 6) for s in m[i]) for k, m in by_kind.items()},
            )
        )
    described = {name: f"{array.dtype}{list(array.shape)}" for name, array in feeds.items()}
    return ModelBench(
        describe_machine(), require_onnxruntime().__version__, threads, described, tuple(results)
    )


def _is_foreign(path: Path) -> bool:
    return path.suffix in _FOREIGN


def _prompt_dims(model: ir.Model, prompt: int) -> dict[str, int]:
    """The symbolic length of input_ids set to ``prompt``."""
    for value in model.graph.inputs:
        if prompt and value.name == "input_ids" and value.shape is not None:
            length = value.shape[-1]
            if not isinstance(length, int) and length.value is not None:
                return {length.value: prompt}
    return {}


@dataclass(frozen=True)
class _Job:
    """What a worker is to run. ``sliding``: :func:`sliding_caches`; ``hint`` is added to what onnxruntime complains."""

    feeds: Inputs
    threads: int
    generate: int
    sliding: frozenset[str] = frozenset()
    hint: str = ""

    @property
    def positions(self) -> int:
        """What a decoder's cache must hold."""
        return max(int(self.feeds["input_ids"].shape[-1]), self.generate)


_FOREIGN: Mapping[str, tuple[Callable[[Path], int], Callable[[str, _Job], Any]]] = {
    gguf_runs.SUFFIX: (
        gguf_runs.size_of_gguf,
        lambda model, job: gguf_runs.GgufModel(model, job.threads, job.positions),
    ),
    openvino_runs.SUFFIX: (
        openvino_runs.size_of_openvino,
        lambda model, job: openvino_runs.OpenVinoModel(model, job.threads, job.sliding),
    ),
}
"""Files that another library runs, by suffix: their bytes, and what loads them."""


@dataclass
class _Worker:
    """The parent's end of a process that holds one session."""

    model: Path
    process: Any
    connection: Connection

    def receive(self) -> Any:
        """The next answer. Raises MxortError where it is an error, or the process has ended without one."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            raise MxortError(f"{self.model}: its process ended with status {code} (out of memory?)") from None
        if kind == "error":
            raise MxortError(value)
        return value

    def ask(self, request: str) -> Any:
        with contextlib.suppress(ConnectionError):  # that it has ended shows when the answer is read
            self.connection.send(request)
        return self.receive()

    def seconds(self, kind: str) -> float:
        """Time of a "run", or of a token ("decode")."""
        return float(self.ask(kind))


@contextlib.contextmanager
def _workers(paths: Sequence[Path], job: _Job) -> Iterator[list[_Worker]]:
    """One process per model, started one after the other; they end with the block, whatever happens in it."""
    context = multiprocessing.get_context("spawn")  # a forked child would inherit, and report, our memory
    workers: list[_Worker] = []
    # A terminal sends Ctrl-C to the children too, but it is the parent's to handle: it closes the pipes.
    # Blocked before they start, for a handler of their own would come after half a second of imports; and
    # after multiprocessing's resource tracker has started, which unblocks it.
    resource_tracker.ensure_running()
    try:
        for path in paths:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, str(path), job), daemon=True)
            unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            theirs.close()
            workers.append(_Worker(path, process, ours))
        yield workers
    finally:
        for worker in workers:
            worker.connection.close()  # the process reads end of file and ends
        for worker in workers:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.terminate()


def _serve(connection: Connection, model: str, job: _Job) -> None:
    """The worker: answers ("ok", value) or ("error", text) until there are no more requests."""
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            _answer(connection, model, job)
        except MxortError as error:
            connection.send(("error", str(error)))
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # onnxruntime's exception types have no common base but this
            connection.send(("error", f"{model}: fails to run: {one_line(error)}{job.hint}"))


def _answer(connection: Connection, model: str, job: _Job) -> None:
    """Loads the model, then answers: "run" and "decode" with a time, "memory" with the peak, "profile" with shares."""
    pin(job.threads)
    options = session_options(job.threads)
    base, anonymous = status_bytes("VmRSS"), status_bytes("RssAnon")
    start = time.perf_counter()
    foreign = _FOREIGN[Path(model).suffix][1](model, job) if _is_foreign(Path(model)) else None
    session = None if foreign else open_session(model, options)
    loaded = {"seconds": time.perf_counter() - start, "base": base}
    connection.send(("ok", loaded | {"anonymous": status_bytes("RssAnon") - anonymous}))
    runner = (
        foreign.runner(job.feeds, job.generate)
        if foreign
        else make_runner(session, job.feeds, job.generate, job.sliding)
    )
    while True:
        request = connection.recv()
        if request == "memory":
            answer: Any = status_bytes("VmHWM")
        elif request == "profile":
            answer = {} if foreign else node_shares(model, job.feeds, job.generate, job.threads, job.sliding)
        else:
            answer = runner[request]()
        connection.send(("ok", answer))
