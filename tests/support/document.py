"""The code in docs/pipelines.md, run as a reader would: pasted, block after block, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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
    done = subprocess.run(
        [*SHELLS[language], text], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_blocks(section, folder):
    """What the blocks of a section print, one after the other (see :func:`run`)."""
    found = blocks(section)
    assert found, f"no block below {section}"
    return [run(each, folder) for each in found]
