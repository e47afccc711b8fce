"""``mxort`` as users meet it: a process with an exit status and two streams. It is forked from one that has imported
what the commands need, since imports are most of the two seconds that a process takes which begins from nothing."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["mxort.cli.convert", "mxort.cli.compare", "mxort.cli.eval", "mxort.cli.sensitivity"]
)
_STATUS_OF_TIMEOUT = 124


def run(
    *arguments: object, cwd: Path | None = None, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``python -m mxort ARGUMENTS``, as subprocess.run would say it. A command that hangs is ended, status 124."""
    words = [str(each) for each in arguments]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("out", "err")]
        given = (
            words,
            str(cwd or Path.cwd()),
            {**os.environ, **environment},
            [str(each) for each in streams],
        )
        process = _FORKS.Process(target=_command, args=given)
        process.start()
        process.join(timeout)
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
            status = _STATUS_OF_TIMEOUT
        out, err = (each.read_text() if each.exists() else "" for each in streams)
    return subprocess.CompletedProcess(["mxort", *words], status, out, err)


def _command(words: Sequence[str], cwd: str, environment: Mapping[str, str], streams: Sequence[str]) -> None:
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["mxort", *words]
    runpy.run_module("mxort", run_name="__main__", alter_sys=True)


def beside_peers(model: object, *, runs: int) -> list[str]:
    """Arguments of ``mxort bench model`` that time a model and its peers, shortly."""
    return [
        "bench",
        "model",
        str(model),
        "--peers",
        "--runs",
        str(runs),
        "--warmup",
        "0",
        "--threads",
        "1",
        "--json",
    ]
