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


def run_blocks(section, folder):
    """What the blocks print, run in ``folder``. A block that fails is an AssertionError with what it said."""
    found = blocks(section)
    assert found, f"no block below {section}"
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    printed = []
    for language, text in found:
        done = subprocess.run(
            [*SHELLS[language], text], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return printed
