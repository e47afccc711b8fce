"""Test programs on the simulated GPU, each in a process of its own: faults, crashes and a process's end are then
results like any other, and no test sees another one's device.

A program is an ordinary function of a test file, with JSON arguments and a JSON result:

    def bound_run(model: str) -> dict: ...          # imports gpu, runs in the child

    def test_bound_run(model): assert run(bound_run, model, HIPSIM_DEVICES="gfx942")["copies"] == 0
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxort
from hipsim import harness

HERE = Path(__file__).resolve().parent
TESTED = os.environ.get("MXORT_TEST_LIBRARIES", "")
LIBRARY = str(Path(TESTED).resolve() / "libmxort.so" if TESTED else mxort.get_library_path())
"""The library under test: that of the package, or of another build."""

CHILD = HERE / "child.py"
MARK = "result: "
"""Starts the line of the child's output that holds the result."""

EXPECT_SECONDS = 3600  # only against a hang: the machine may be busy


@dataclass(frozen=True)
class Outcome:
    """What a child left behind: its result (None where it died), exit code and standard error."""

    result: Any
    code: int
    stderr: str

    @property
    def warnings(self) -> list[str]:
        """Lines of standard error that warn, of mxort or of onnxruntime."""
        return [line for line in self.stderr.splitlines() if "warn" in line.lower()]


def environment(**variables: str | None) -> dict[str, str]:
    """The test's environment with the simulated HIP runtime; None removes a variable."""
    own = {"MXORT_HIP_LIBRARY": str(harness.library_path() / "libamdhip64.so.7"), "HIPSIM_THREADS": "2"}
    own["OMP_NUM_THREADS"] = "1"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HIPSIM_", "MXORT_HIP"))}
    merged: dict[str, str | None] = {**kept, **own, **variables}
    return {k: v for k, v in merged.items() if v is not None}


def start(program: Callable[..., Any], *arguments: Any, **variables: str | None) -> Outcome:
    """Runs a program to its end, whatever that is."""
    command = [sys.executable, str(CHILD), program.__code__.co_filename, program.__name__]
    done = subprocess.run(
        [*command, json.dumps(arguments)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=EXPECT_SECONDS,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    return Outcome(json.loads(lines[-1][len(MARK) :]) if lines else None, done.returncode, done.stderr)


def run(program: Callable[..., Any], *arguments: Any, **variables: str | None) -> Any:
    """The result of a program that must end well."""
    outcome = start(program, *arguments, **variables)
    why = signal.Signals(-outcome.code).name if outcome.code < 0 else f"exit code {outcome.code}"
    assert outcome.code == 0, f"{program.__name__}: {why}\n{outcome.stderr[-4000:]}"
    return outcome.result
