"""What a benchmark runs in a session: a model on its inputs, or a decoder token by token with its KV cache."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from mxort.calibration.example_inputs import Inputs
from mxort.evaluation import caches
from mxort.evaluation.turns import session_options
from mxort.runtime.session import open_session, require_onnxruntime

_PAST, _PRESENT = "past_key_values.", "present."
_PROFILED_RUNS = 3


def is_decoder(feeds: Inputs) -> bool:
    """Whether these are inputs of a decoder with a KV cache, as onnxruntime-genai's builder and optimum name them."""
    return "input_ids" in feeds and any(name.startswith(_PAST) for name in feeds)


def empty_cache(feeds: Inputs, sliding: Collection[str] = ()) -> Inputs:
    """The cache before the first token; one that slides has its full length at once."""
    return {
        name: np.asarray(array) if name in sliding else np.asarray(array)[:, :, :0]
        for name, array in feeds.items()
        if name.startswith(_PAST)
    }


def token_inputs(feeds: Inputs, step: int) -> Inputs:
    """What a decoder is given besides its cache for one token behind ``step`` others, of the inputs that it has."""
    tokens = np.asarray(feeds["input_ids"])[:1]
    arrays = {
        "input_ids": tokens[:, [step % tokens.shape[1]]],
        "attention_mask": np.ones((1, step + 1), np.int64),
        "position_ids": np.full((1, 1), step, np.int64),
    }
    return {name: array for name, array in arrays.items() if name in feeds}


def present_of(past: str) -> str:
    """The output that becomes the input ``past`` of the next token."""
    return past.replace(_PAST, _PRESENT)


def make_runner(
    session: Any, feeds: Inputs, generate: int, sliding: Collection[str] = ()
) -> dict[str, Callable[[], float]]:
    """What takes turns: "run" is one run of ``feeds``; for decoders "decode" is ``generate`` tokens, one by one from an
    empty cache. Each returns seconds, of a run or of the median token. ``sliding``: see :func:`sliding_caches`."""
    feeds = caches.fitted(feeds, caches.rows_of_session(session))

    def run() -> float:
        start = time.perf_counter()
        session.run(None, feeds)
        return time.perf_counter() - start

    return {"run": run, "decode": lambda: _decode(session, feeds, generate, sliding)}


def _decode(session: Any, feeds: Inputs, generate: int, sliding: Collection[str]) -> float:
    """Median seconds of a token. The cache stays in onnxruntime's memory; what a token costs includes that the graph
    returns a grown copy of it, which is small for so few tokens."""
    value = require_onnxruntime().OrtValue.ortvalue_from_numpy
    outputs = [output.name for output in session.get_outputs()]
    past = {name: value(array) for name, array in empty_cache(feeds, sliding).items()}
    times = []
    for step in range(generate):
        given = {name: value(array) for name, array in token_inputs(feeds, step).items()}
        start = time.perf_counter()
        results = session.run_with_ort_values(outputs, given | past)
        times.append(time.perf_counter() - start)
        named = dict(zip(outputs, results, strict=True))
        past = {name: named[present_of(name)] for name in past}
    return float(np.median(times))


def node_shares(
    model: str, feeds: Inputs, generate: int, threads: int, sliding: Collection[str] = ()
) -> dict[str, dict[str, float]]:
    """Parts of the nodes' time by operator, for each kind of turn, from onnxruntime's profiler; the largest first."""
    shares = {}
    for kind in ("run", "decode") if is_decoder(feeds) and generate else ("run",):
        with tempfile.TemporaryDirectory() as folder:
            options = session_options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = open_session(model, options)
            run = make_runner(session, feeds, generate, sliding)[kind]
            for _ in range(_PROFILED_RUNS):
                run()
            events = json.loads(Path(session.end_profiling()).read_text())
        spent: dict[str, float] = defaultdict(float)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"]
        total = sum(spent.values()) or 1.0
        shares[kind] = {op: spent[op] / total for op in sorted(spent, key=lambda op: -spent[op])}
    return shares
