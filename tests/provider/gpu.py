"""Sessions on the execution provider, for programs that simulated.py starts."""

from __future__ import annotations

import gc
import json
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from simulated import LIBRARY

from hipsim import harness

EP = "MxortExecutionProvider"
TOY = "ToyExecutionProvider"
REGISTRATION = "mxort.virtual"
"""The ending tells the library that devices which ONNX Runtime did not find may be used: it looks for a display
driver's entry in /sys, which a simulated device has not."""

VENDOR = 0x1002
LIVE = ("allocations", "modules", "streams", "events", "graphs")

sim = harness.Sim.attach()


def live() -> dict[str, int]:
    """What the process holds of the device, without what it does not hold: {} is no leak."""
    counters = sim.counters()
    return {name: counters[name] for name in LIVE if counters[name]}


@contextmanager
def registered(toy: str = "") -> Iterator[None]:
    """The provider's library known to ONNX Runtime, and the toy's if its path is given."""
    ort.register_execution_provider_library(REGISTRATION, LIBRARY)
    if toy:
        ort.register_execution_provider_library("toy", toy)
    try:
        yield
    finally:
        gc.collect()  # a session that is still alive would use the library after its release
        if toy:
            ort.unregister_execution_provider_library("toy")
        ort.unregister_execution_provider_library(REGISTRATION)


def devices(name: str = EP, kind: str = "GPU") -> list[Any]:
    return [each for each in ort.get_ep_devices() if (each.ep_name, each.device.type.name) == (name, kind)]


def session(
    model: str,
    *,
    providers: Sequence[str] = (EP,),
    device: int = 0,
    options: Mapping[str, Any] | None = None,
    config: Mapping[str, str] | None = None,
    severity: int = 3,
) -> ort.InferenceSession:
    """A session on the providers in that order; ``device`` (a number) and ``options`` are those of EP.

    Without the self-check unless they ask for it: on the simulator it takes a second for each kind of node. Without the
    fallback of onnxruntime's Python class either, which would open another session, on the CPU, where this one fails.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = severity
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in (config or {}).items():
        settings.add_session_config_entry(key, value)
    for name in providers:
        own = {k: str(v) for k, v in ({"self_check": 0} | dict(options or {})).items()} if name == EP else {}
        settings.add_provider_for_devices([devices(name)[device if name == EP else 0]], own)
    return ort.InferenceSession(model, settings, enable_fallback=0)


def placement(opened: ort.InferenceSession) -> dict[str, list[str]]:
    """Provider -> sorted operator types, as ONNX Runtime itself recorded them."""
    found: dict[str, list[str]] = {}
    for group in opened.get_provider_graph_assignment_info():
        found.setdefault(group.ep_name, []).extend(node.op_type for node in group.get_nodes())
    return {name: sorted(types) for name, types in found.items()}


def feeds(opened: ort.InferenceSession, rows: int = 5, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random input: ``rows`` wherever a dimension is free."""
    rng = np.random.default_rng(seed)
    return {
        i.name: rng.standard_normal([d if isinstance(d, int) else rows for d in i.shape]).astype(np.float32)
        for i in opened.get_inputs()
    }


def message(error: BaseException) -> str:
    """Of an exception, on one line."""
    return " ".join(str(error).split())


@dataclass(frozen=True)
class Fork:
    """What a fork left behind: its result (None where it died), how it died ("" where it did not), standard error."""

    result: Any
    death: str
    stderr: str


def forked(body: Callable[..., Any], *arguments: Any) -> Fork:
    """Runs ``body`` in a fork of this process, before which the device must be untouched.

    Every fork finds a new machine and a library that remembers nothing, at none of the cost of a new process.
    """
    with tempfile.TemporaryFile("w+") as log:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            os.dup2(log.fileno(), 2)
            code = 1
            try:
                with os.fdopen(writer, "w") as pipe:
                    json.dump(body(*arguments), pipe)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log.seek(0)
        death = signal.Signals(-status).name if status < 0 else "exception" if status else ""
        return Fork(None if status else json.loads(text), death, log.read())


def prime(arch: str = "gfx950") -> None:
    """Lets the simulator decode the library's code objects, for forks that will load them."""
    for path in (Path(__file__).resolve().parents[2] / "build" / "cmake" / "hip").glob(f"*.{arch}.co"):
        sim.load(path).unload()
    sim.lib.hipsim_reset(None)
