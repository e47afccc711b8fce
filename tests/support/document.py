"""The code in docs/pipelines.md, run as a reader would: pasted, block after block, in one folder."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "pipelines.md"
SHELLS = {"bash": ["bash", "-euc"], "python": [sys.executable, "-c"]}


def blocks(section):
    """(language, text) of the blocks below the heading ``section``."""
    parts = re.split(r"^## (.*)\n", DOCUMENT.read_text(), flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(block, folder):
    """What a block (language, text) prints, run in ``folder``. AssertionError with what it said, where it fails."""
    language, text = block
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    command = [*SHELLS[language], text]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        shell = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        status = shell.wait()
        with contextlib.suppress(ProcessLookupError):  # a server that a block which failed has left behind
            os.killpg(shell.pid, signal.SIGKILL)
        out.seek(0), err.seek(0)
        printed, said = out.read(), err.read()
    assert status == 0, f"{text}\n{printed}\n{said}"
    return printed


def run_blocks(section, folder):
    """What the blocks of a section print, one after the other (see :func:`run`)."""
    found = blocks(section)
    assert found, f"no block below {section}"
    return [run(each, folder) for each in found]
