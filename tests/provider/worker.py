"""Functions of scenarios.py, run in a process of their own that sees simulated GPUs.

The HIP runtime is opened once per process, so the process of the tests themselves stays without one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from hipsim import harness

HIP_LIBRARY = "MXORT_HIP_LIBRARY"


def environment(devices: str = "gfx950", **more: str) -> dict[str, str]:
    """What a process needs to find the simulated runtime with these devices."""
    return {
        HIP_LIBRARY: str(harness.library_path() / "libamdhip64.so.7"),
        "HIPSIM_DEVICES": devices,
        "HIPSIM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        **more,
    }


def _start(variables: dict[str, str]) -> None:
    os.environ.update(variables)


@contextmanager
def worker(variables: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """``run(function, *arguments)`` in a fresh process with these environment variables."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(variables,)) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=300)
