"""What a benchmark runs of a GGUF: the same decoder in llama.cpp, through llama-cpp-python."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mxort.calibration.example_inputs import Inputs
from mxort.errors import MxortError

SUFFIX = ".gguf"


def size_of_gguf(path: Path) -> int:
    """Bytes of the file. Raises MxortError where there is none."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise MxortError(f"{path}: cannot be read: {error.strerror}") from None


class GgufModel:
    """A model loaded as llama-bench does: flash attention, a batch for the whole prompt. Raises MxortError where
    llama-cpp-python is not installed or cannot load the file."""

    def __init__(self, path: str, threads: int, positions: int) -> None:
        try:
            import llama_cpp  # type: ignore[import-not-found]
        except ImportError:
            raise MxortError(f"{path}: a GGUF runs in llama-cpp-python, which is not installed") from None
        threads = threads or len(os.sched_getaffinity(0))
        try:
            with _silent():
                self._model: Any = llama_cpp.Llama(
                    path,
                    n_threads=threads,
                    n_threads_batch=threads,
                    n_ctx=positions,
                    n_batch=positions,
                    n_ubatch=positions,
                    flash_attn=True,
                    verbose=False,
                )
        except ValueError as error:
            raise MxortError(f"{path}: llama.cpp cannot load it: {error}") from None

    def runner(self, feeds: Inputs, generate: int) -> dict[str, Callable[[], float]]:
        """As :func:`mxort.evaluation.model_runs.make_runner`; of a prompt llama.cpp computes the last logits only."""
        tokens = [int(token) for token in np.asarray(feeds["input_ids"])[0]]

        def run() -> float:
            self._model.reset()
            return self._seconds(tokens)

        def decode() -> float:
            self._model.reset()
            times = [self._seconds([tokens[step % len(tokens)]]) for step in range(generate)]
            return float(np.median(times))

        return {"run": run, "decode": decode}

    def _seconds(self, tokens: list[int]) -> float:
        start = time.perf_counter()
        self._model.eval(tokens)
        return time.perf_counter() - start


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """llama.cpp writes to the file descriptor of stderr while it loads."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
