"""What the tests of the execution provider run inside a worker process (worker.py); results are pickled."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import mxort
from hipsim import harness

EP = "MxortExecutionProvider"
AMD = 0x1002


@dataclass
class Result:
    """Outputs by run; (provider, operator) of each node; what was warned about."""

    outputs: list[list[np.ndarray]]
    placement: list[tuple[str, str]]
    warnings: list[str]

    def providers_of(self, op_type: str) -> set[str]:
        return {provider for provider, op in self.placement if op == op_type}


def placement(session: ort.InferenceSession) -> list[tuple[str, str]]:
    parts = session.get_provider_graph_assignment_info()
    return [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]


def session_options(config: dict[str, str] | None = None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


def run(
    model: str | bytes,
    feeds: list[dict[str, np.ndarray]],
    device: str = "gpu",
    config: dict[str, str] | None = None,
    device_options: dict[str, Any] | None = None,
) -> Result:
    """A session by the helper, each of ``feeds`` once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = mxort.InferenceSession(
            model, session_options(config), device=device, device_options=device_options
        )
    outputs = [session.run(None, feed) for feed in feeds]
    return Result(outputs, placement(session), [str(w.message) for w in caught])


def fails(*args: Any, **kwargs: Any) -> str:
    """Type and text of what :func:`run` raises; "" for nothing."""
    try:
        run(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def profiled(model: bytes, feed: dict[str, np.ndarray], prefix: str) -> list[dict[str, Any]]:
    """Our events in onnxruntime's profile of two runs."""
    options = session_options()
    options.enable_profiling = True
    options.profile_file_prefix = prefix
    session = mxort.InferenceSession(model, options, device="gpu")
    for _ in range(2):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    return [
        event for event in events if event.get("args", {}).get("provider") == EP and "rows" in event["args"]
    ]


def replayed(model: bytes, inputs: list[np.ndarray], outputs: int) -> tuple[list[np.ndarray], dict[str, int]]:
    """Y [rows, outputs] for each input, with the launches captured once: and what the HIP runtime was asked for
    between the second run and the last."""
    session = mxort.InferenceSession(
        model, session_options(), device="gpu", device_options={"graph_capture": True}
    )
    a = ort.OrtValue.ortvalue_from_numpy(inputs[0], "gpu", 0, AMD)
    y = ort.OrtValue.ortvalue_from_shape_and_type([len(inputs[0]), outputs], np.float32, "gpu", 0, AMD)
    binding = session.io_binding()
    binding.bind_ortvalue_input("A", a)
    binding.bind_ortvalue_output("Y", y)
    results = []
    before: dict[str, int] = {}
    for i, values in enumerate(inputs):
        a.update_inplace(values)
        if i == 2:
            before = counters()
        session.run_with_iobinding(binding)
        results.append(y.numpy())
    return results, {name: count - before[name] for name, count in counters().items()}


def counters() -> dict[str, int]:
    """What the simulated runtime has handed out and not got back, and what it did."""
    return dict(json.loads(harness.runtime().hipsim_counters()))


def calls() -> dict[str, int]:
    """Functions of the HIP runtime that this process has called."""
    return dict(json.loads(harness.runtime().hipsim_calls()))


def devices() -> list[mxort.Device]:
    return mxort.devices()
