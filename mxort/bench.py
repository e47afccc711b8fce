"""Benchmarks that can be compared: candidates take turns (A B A B ...), so that all meet the same machine.

Here are the clockwork and the comparison of whole models; ``bench_ops`` compares single operators.
"""

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
from typing import TYPE_CHECKING, Any

import numpy as np

from mxort.converters import model_io
from mxort.errors import MxortError
from mxort.example_inputs import Inputs, InputSource, check_inputs, inputs_for
from mxort.machine import Machine, describe_machine, status_bytes
from mxort.session import one_line, open_session, require_onnxruntime

if TYPE_CHECKING:
    from mxort.pipeline import Progress

MIN_ROUNDS = 3
"""Rounds that are timed even where they take longer than the time allowed."""


@dataclass(frozen=True)
class Timing:
    """Times of one candidate in milliseconds, and how they compare with those of the first candidate.

    ``ratio`` is the median over the rounds of (time of the first / time of this one): above 1 is faster
    than the first.
    """

    runs: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    ratio: float


def summarize(seconds: Sequence[float], baseline: Sequence[float]) -> Timing:
    """The Timing of ``seconds`` against ``baseline``, measured in the same rounds."""
    ms = np.asarray(seconds) * 1e3
    p50, p90, p99 = (float(p) for p in np.percentile(ms, (50, 90, 99)))
    ratio = float(np.median(np.asarray(baseline) / np.asarray(seconds)))
    return Timing(len(ms), float(ms.min()), p50, p90, p99, ratio)


def interleave(
    candidates: Sequence[Callable[[], float]],
    *,
    runs: int,
    warmup: int,
    max_seconds: float = float("inf"),
    on_round: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Lets the candidates take turns; returns the times that each reported, round by round.

    ``warmup`` rounds are not counted. Stops before ``runs`` rounds where they take longer than
    ``max_seconds``, but never before MIN_ROUNDS.
    """
    for _ in range(warmup):
        for candidate in candidates:
            candidate()
    times: list[list[float]] = [[] for _ in candidates]
    deadline = time.perf_counter() + max_seconds
    for done in range(runs):
        if done >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        for candidate, measured in zip(candidates, times, strict=True):
            measured.append(candidate())
        on_round(done + 1)
    return times


def session_options(threads: int) -> Any:
    """Options for timing: ``threads`` (0: onnxruntime's choice) that do not spin while others run."""
    options = require_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


@dataclass(frozen=True)
class ModelResult:
    """One model of a comparison. Memory is that of a process of its own; ``base_rss_bytes`` is what Python,
    numpy and onnxruntime take in it before the model is loaded."""

    model: str
    file_bytes: int
    load_seconds: float
    timing: Timing
    base_rss_bytes: int
    peak_rss_bytes: int


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
    progress: Progress | None = None,
) -> ModelBench:
    """Times the models in turns on the same inputs, each in a process of its own.

    Raises MxortError for models that cannot be opened or run and for inputs that do not fit every model.
    """
    paths = [Path(model) for model in models]
    report = progress or (lambda what, fraction: None)
    report("reading", 0.0)
    sources = [model_io.load(path) for path in paths]
    feeds = inputs_for(sources[0].model, sources[0].name, inputs, seed=seed, dims=dims)
    for source in sources[1:]:
        check_inputs(feeds, source.model, source.name)
    file_bytes = [source.nbytes for source in sources]
    del sources
    with _workers(paths, feeds, threads) as workers:
        loaded = [worker.receive() for worker in workers]
        times = interleave(
            [worker.run for worker in workers],
            runs=runs,
            warmup=warmup,
            on_round=lambda done: report(f"round {done} of {runs}", done / runs),
        )
        memory = [worker.finish() for worker in workers]
    results = tuple(
        ModelResult(
            model=str(path),
            file_bytes=size,
            load_seconds=load,
            timing=summarize(seconds, times[0]),
            base_rss_bytes=base,
            peak_rss_bytes=peak,
        )
        for path, size, load, seconds, (base, peak) in zip(
            paths, file_bytes, loaded, times, memory, strict=True
        )
    )
    described = {name: f"{array.dtype}{list(array.shape)}" for name, array in feeds.items()}
    return ModelBench(describe_machine(), require_onnxruntime().__version__, threads, described, results)


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

    def run(self) -> float:
        return float(self.ask("run"))

    def finish(self) -> tuple[int, int]:
        base, peak = self.ask("finish")
        return base, peak


@contextlib.contextmanager
def _workers(paths: Sequence[Path], feeds: Inputs, threads: int) -> Iterator[list[_Worker]]:
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
            process = context.Process(target=_serve, args=(theirs, str(path), feeds, threads), daemon=True)
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


def _serve(connection: Connection, model: str, feeds: Inputs, threads: int) -> None:
    """The worker: answers ("ok", value) or ("error", text) until there are no more requests."""
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            _answer(connection, model, feeds, threads)
        except MxortError as error:
            connection.send(("error", str(error)))
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # onnxruntime's exception types have no common base but this
            connection.send(("error", f"{model}: fails to run: {one_line(error)}"))


def _answer(connection: Connection, model: str, feeds: Inputs, threads: int) -> None:
    """Loads the model, then runs it once per "run"; sends the time of each, and at last its memory."""
    options = session_options(threads)
    base = status_bytes("VmRSS")
    start = time.perf_counter()
    session = open_session(model, options)
    connection.send(("ok", time.perf_counter() - start))
    while connection.recv() == "run":
        start = time.perf_counter()
        session.run(None, feeds)
        connection.send(("ok", time.perf_counter() - start))
    connection.send(("ok", (base, status_bytes("VmHWM"))))
