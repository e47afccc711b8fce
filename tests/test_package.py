"""What the installed package says of itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import mxort

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
