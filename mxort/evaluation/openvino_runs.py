"""What a benchmark runs of OpenVINO's model files (.xml): the same model in OpenVINO, on the CPU."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from mxort.calibration.example_inputs import Inputs
from mxort.errors import MxortError
from mxort.evaluation.model_runs import empty_cache, present_of, token_inputs

SUFFIX = ".xml"


def size_of_openvino(path: Path) -> int:
    """Bytes of the file and of its weights. Raises MxortError where one is not there."""
    try:
        return path.stat().st_size + path.with_suffix(".bin").stat().st_size
    except OSError as error:
        raise MxortError(f"{error.filename}: cannot be read: {error.strerror}") from None


class OpenVinoModel:
    """A model loaded as OpenVINO advises for latency: one stream, and the precision it chooses for the CPU (bfloat16
    with AMX). Raises MxortError where OpenVINO is not installed or cannot load the file."""

    def __init__(self, path: str, threads: int, sliding: Collection[str] = ()) -> None:
        try:
            openvino = importlib.import_module("openvino")
        except ImportError:
            raise MxortError(f"{path}: this file runs in OpenVINO, which is not installed") from None
        threads = threads or len(os.sched_getaffinity(0))
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        try:
            compiled = openvino.Core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise MxortError(f"{path}: OpenVINO cannot load it: {text}") from None
        self._sliding = sliding
        # Two, by turns: what one has computed is what the other reads, so that no cache is copied between tokens.
        self._requests = [compiled.create_infer_request() for _ in range(2)]

    def runner(self, feeds: Inputs, generate: int) -> dict[str, Callable[[], float]]:
        """As :func:`mxort.evaluation.model_runs.make_runner`."""

        def decode() -> float:
            past: dict[str, Any] = dict(empty_cache(feeds, self._sliding))
            times = []
            for step in range(generate):
                request = self._requests[step % 2]
                times.append(_seconds(request, token_inputs(feeds, step) | past))
                past = {name: request.get_tensor(present_of(name)) for name in past}
            return float(np.median(times))

        return {"run": lambda: _seconds(self._requests[0], dict(feeds)), "decode": decode}


def _seconds(request: Any, feeds: dict[str, Any]) -> float:
    start = time.perf_counter()
    request.infer(feeds, share_inputs=True)
    return time.perf_counter() - start
