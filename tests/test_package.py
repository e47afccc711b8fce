"""What the installed package says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import mxort
from mxort.errors import MxortError
from mxort.runtime import session

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_projects() -> None:
    assert mxort.__version__ == metadata.version("mxort") == PROJECT["version"]


def test_python_m_mxort_is_the_command_line() -> None:
    command = [sys.executable, "-m", "mxort", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert PROJECT["version"] in done.stdout


def test_type_checkers_see_the_annotations() -> None:
    assert resources.files("mxort").joinpath("py.typed").is_file()


def test_the_changelog_has_this_version() -> None:
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    assert f"## {PROJECT['version']}" in changelog


BARE_NAME = """
import sys
import numpy as np, onnx, onnxruntime
import mxort
from mxort.runtime.op_models import MatMulMXFP4, random_mxfp4, relative_rms

rng = np.random.default_rng(0)
node = MatMulMXFP4(*random_mxfp4(96, 40, rng), K=96)
a = rng.standard_normal((3, 96), dtype=np.float32)
if sys.argv[1] == "load":
    assert mxort.load() == mxort.get_library_path()
options = onnxruntime.SessionOptions()
options.register_custom_ops_library("libmxort.so")
session = onnxruntime.InferenceSession(node.model(), options, providers=["CPUExecutionProvider"])
assert relative_rms(session.run(None, {"A": a})[0], node.expected(a)) < node.error_bound
print("runs")
"""


@pytest.mark.parametrize("loaded", ["load", "no"])
def test_the_bare_name_finds_the_library_once_it_is_loaded(loaded: str, tmp_path: Path) -> None:
    """As onnxruntime-genai's configuration names it: no path, no LD_LIBRARY_PATH, another working directory."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", BARE_NAME, loaded]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if loaded == "load":
        assert (done.returncode, done.stdout) == (0, "runs\n"), done.stderr
    else:
        assert done.returncode != 0
        assert "libmxort.so: cannot open shared object file" in done.stderr


def test_a_library_that_cannot_be_loaded_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "libmxort.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(session, "get_library_path", lambda: str(broken))
    with pytest.raises(MxortError, match=rf"^cannot load {broken}: file too short$"):
        mxort.load()
