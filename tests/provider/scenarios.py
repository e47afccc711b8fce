"""What the tests of the execution provider run inside a worker process (worker.py). Arguments and results are pickled."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

import mxort
from hipsim import harness

EP = "MxortExecutionProvider"


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


def counters() -> dict[str, int]:
    """What the simulated runtime has handed out and not got back, and what it did."""
    import json

    return dict(json.loads(harness.runtime().hipsim_counters()))


def devices() -> list[mxort.Device]:
    return mxort.devices()
