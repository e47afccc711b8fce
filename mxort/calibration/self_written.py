"""Calibration text that a decoder writes itself: for users who have none (docs/accuracy.md says what it is worth)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.calibration import beside
from mxort.calibration.decoder_loop import DecoderLoop, Tokens
from mxort.converters import model_io
from mxort.converters.model_io import Source
from mxort.errors import MxortError
from mxort.progress import Progress, silent
from mxort.runtime.session import open_session, require_onnxruntime

SELF = "self"
"""In the place of data: the model writes them."""

_VERSION = 1
"""Raised when the same settings come to mean other text."""

_BATCH = 32
"""Windows written at once: a step reads every weight once for all of them."""

_CACHE_BYTES = 1 << 30
"""What the caches of the windows written at once may take."""

_LOGITS_AT_ONCE = 1 << 27
"""Numbers of logits that a model without a cache may compute in a step: those of all its tokens, every time."""

_TOKENS, _TOKENS_WITHOUT_CACHE = 512, 128
_WARM = 4
"""Steps after which it is told how long all will take."""


@dataclass(frozen=True)
class SelfWritten:
    """How much a model writes: ``windows`` of ``tokens`` tokens, reproducible by ``seed``.

    ``tokens`` 0: 512, or 128 for a model without a KV cache, which reads all of them again for each; never more than
    its context has. A window begins with a token drawn from the whole vocabulary, each as likely as any other; what
    follows is drawn from the model's own distribution at ``temperature``. Where a text ends, the next one begins in
    the same window.
    """

    windows: int = 32
    tokens: int = 0
    seed: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("windows", 1), ("tokens", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise MxortError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if not 0 < self.temperature < float("inf"):
            raise MxortError(f"temperature: expected a number above 0, got {self.temperature}")


@dataclass(frozen=True)
class Written:
    """What a model wrote: int64 [tokens] of each window, and how, for reports."""

    windows: tuple[Tokens, ...]
    description: str

    def __iter__(self) -> Iterator[Tokens]:
        return iter(self.windows)


def asked_for(data: Any) -> bool:
    """Whether a model is to write calibration data, or a part of them."""
    parts = data if isinstance(data, list | tuple) else [data]
    return any(isinstance(part, SelfWritten) or (isinstance(part, str) and part == SELF) for part in parts)


def nothing(text: str) -> None:
    """Tells nobody."""


def write(
    source: Source,
    settings: SelfWritten,
    *,
    threads: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = nothing,
) -> Written:
    """The text that the model writes. ``cache``: a folder that keeps it, for the same model, settings, and
    configuration beside the model.

    ``say`` is told what it costs before most of it is done. Raises MxortError for a model that is no decoder.
    """
    kept = None if cache is None or not source.sha256 else Path(cache) / _file_name(source, settings)
    found = None if kept is None else _read(kept, settings)
    if found is None:
        found = _Writer(source, settings, threads, progress, say).text()
        if kept is not None:
            _keep(kept, found)
    how = f"temperature {settings.temperature:g}, seed {settings.seed}"
    size = f"{found.shape[0]} windows of {found.shape[1]} tokens"
    return Written(tuple(found), f"{size} that the model wrote itself ({how})")


def sample(logits: NDArray[np.float32], temperature: float, numbers: NDArray[np.float64]) -> Tokens:
    """One token for each row of logits [batch, vocabulary], int64 [batch]: where its number of 0..1 falls among the
    sums of the softmax."""
    x = (logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature)
    sums = np.exp(x).cumsum(axis=1, dtype=np.float64)
    found: Tokens = (sums <= (numbers * sums[:, -1])[:, None]).sum(axis=1)
    return found


class _Writer:
    def __init__(
        self,
        source: Source,
        settings: SelfWritten,
        threads: int,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        progress("opening the model", 0.0)
        self._name = source.name
        self._ends = np.array(beside.configuration(source.path).get("ends", []), np.int64)
        longest = _fitting(settings, beside.context(source.path, source.model))
        self._loop, self._settings = _open(source, longest, asked=settings.tokens > 0, threads=threads)
        self._clock = _Clock(self._settings, self._loop.cached, progress, say)

    def text(self) -> Tokens:
        """int64 [windows, tokens]."""
        settings, batch = self._settings, self._loop.batch
        written = np.zeros((settings.windows, settings.tokens), np.int64)
        for start in range(0, settings.windows, batch):
            rows = range(start, min(start + batch, settings.windows))
            drawn = np.zeros((batch, settings.tokens))  # rows beyond the last window are read by nobody
            for row in rows:  # each has numbers of its own, so that the batch does not matter
                drawn[row - start] = np.random.default_rng([settings.seed, row]).random(settings.tokens)
            for position, tokens in enumerate(self._batch(drawn)):
                written[rows.start : rows.stop, position] = tokens[: len(rows)]
                self._clock.tick(position, len(rows))
        return written

    def _batch(self, drawn: NDArray[np.float64]) -> Iterator[Tokens]:
        """The next token of each window, int64 [batch], from uniform numbers [batch, tokens] in 0..1."""
        loop = self._loop
        loop.reset()
        tokens = (drawn[:, 0] * loop.vocabulary).astype(np.int64)
        yield tokens
        for numbers in drawn[:, 1:].T:
            ended = np.isin(tokens, self._ends)
            logits = loop.step(tokens[:, None])[:, : loop.vocabulary]
            if not np.isfinite(logits.max(axis=1)).all():
                raise MxortError(f"{self._name}: writes no text: its logits are not finite")
            following = sample(logits, self._settings.temperature, numbers)
            tokens = np.where(ended, (numbers * loop.vocabulary).astype(np.int64), following)
            yield tokens


def _open(
    source: Source, settings: SelfWritten, *, asked: bool, threads: int
) -> tuple[DecoderLoop, SelfWritten]:
    """The decoder, and the settings with fewer tokens where nobody ``asked`` for them and each is dear."""
    options = require_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    model = source.path or _in_memory(source)
    if source.path is None and source.data_files:
        folder = str(source.data_files[0].absolute().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    session = open_session(model, options)

    def loop(batch: int) -> DecoderLoop:
        return DecoderLoop(session, source.model, source.name, batch, settings.tokens)

    one = loop(1)
    tokens = settings.tokens if one.cached or asked else min(settings.tokens, _TOKENS_WITHOUT_CACHE)
    settings = replace(settings, tokens=tokens)
    fitting = _CACHE_BYTES // max(1, one.cache_bytes(tokens))
    if not one.cached:
        fitting = _LOGITS_AT_ONCE // (tokens * one.vocabulary)
    rounds = -(-settings.windows // max(1, min(_BATCH, fitting)))
    batch = -(-settings.windows // rounds)
    return one if one.batch == batch else loop(batch), settings


def _in_memory(source: Source) -> bytes:
    try:
        data: bytes = model_io.to_proto(source.model).SerializeToString()
    except Exception as error:  # protobuf ends at 2 GiB, and says so in several ways
        raise MxortError(
            f"{source.name}: too large to be run from memory: save it as a file first"
        ) from error
    return data


def _fitting(settings: SelfWritten, context: int | None) -> SelfWritten:
    """The settings with a number of tokens that the model's context has."""
    tokens = settings.tokens or _TOKENS
    tokens = min(tokens, context or tokens)
    if settings.tokens > tokens:
        raise MxortError(
            f"tokens: got {settings.tokens}, expected at most the {tokens} of the model's context"
        )
    return replace(settings, tokens=tokens)


class _Clock:
    """Says how far the writing is, and after a few steps how long all of it takes."""

    def __init__(
        self, settings: SelfWritten, cached: bool, progress: Progress, say: Callable[[str], None]
    ) -> None:
        self._settings, self._cached, self._progress, self._say = settings, cached, progress, say
        self._what = f"the model writes {settings.windows} windows of {settings.tokens} tokens"
        self._steps = self._done = 0
        self._work = self._started = 0.0

    def tick(self, position: int, tokens: int) -> None:
        """After each step: a step without a cache costs as much as there are tokens before it."""
        if not self._started:
            self._started = time.perf_counter()  # the first one packs weights
        s, each = self._settings, 1 if self._cached else position
        self._steps, self._done, self._work = self._steps + 1, self._done + tokens, self._work + tokens * each
        everything = s.windows * s.tokens * (1 if self._cached else (s.tokens - 1) / 2)
        left = (time.perf_counter() - self._started) * (everything / max(self._work, 1) - 1)
        if self._steps == _WARM:
            self._say(f"{self._what} to calibrate on: about {left:.0f} s")
        self._progress(f"{self._what}, {left:.0f} s left", self._done / (s.windows * s.tokens))


def _file_name(source: Source, settings: SelfWritten) -> str:
    known = {"version": _VERSION, "model": source.sha256, "beside it": beside.configuration(source.path)}
    depends: Mapping[str, Any] = known | vars(settings)
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return f"self-written-{digest}.npy"


def _read(path: Path, settings: SelfWritten) -> Tokens | None:
    """What the file holds, if it is there and whole."""
    try:
        found: Tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = found.dtype == np.int64 and found.ndim == 2 and len(found) == settings.windows
    return found if whole and settings.tokens in (0, found.shape[1]) else None


def _keep(path: Path, written: Tokens) -> None:
    """Into a file of its own, then renamed. A folder that takes nothing is told of with the first weight."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as own:
            partial = Path(own) / path.name
            np.save(partial, written)
            partial.replace(path)
