"""Runs a test's work in a process of its own, where the HIP runtime is hipsim.

What the device layer knows of a machine it keeps for its process: the runtime it opened, what failed a self-check. So
every machine under test is a process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def run(function: Callable[..., None], *args: Any, env: Mapping[str, str] | None = None) -> str:
    """Calls ``function``, of a module's top level, with JSON arguments; returns what the process wrote to stderr."""
    from hipsim import harness

    environment = os.environ | {"MXORT_HIP_LIBRARY": str(harness.library_path() / "libamdhip64.so.7")}
    command = [sys.executable, __file__, function.__code__.co_filename, function.__name__, json.dumps(args)]
    done = subprocess.run(
        command, env=environment | dict(env or {}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{function.__name__}{args}:\n{done.stdout}\n{done.stderr}"
    return done.stderr


def main(path: str, name: str, args: str) -> None:
    sys.path[:0] = [str(TESTS), str(TESTS / "support"), str(TESTS / "kernels_hip"), str(TESTS / "device")]
    spec = importlib.util.spec_from_file_location("case", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(*json.loads(args))


if __name__ == "__main__":
    main(*sys.argv[1:])
