"""JSON that any reader takes, whatever was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mxort.cli import shared
from mxort.text import to_json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "null"),
        ([1.5, -math.inf, math.inf], "[1.5, null, null]"),
        ({"a": {"b": (math.nan, 2)}}, '{"a": {"b": [null, 2]}}'),
        (np.float32("nan"), "null"),
        ([np.float32(0.5), np.int64(3), np.bool_(True)], "[0.5, 3, true]"),
        (np.array([[1.0, np.inf], [np.nan, 2.0]]), "[[1.0, null], [null, 2.0]]"),
        ([True, None, "nan", 10**20], '[true, null, "nan", 100000000000000000000]'),
    ],
)
def test_what_is_not_finite_is_null(value: Any, text: str) -> None:
    assert to_json(value, indent=None) == text


@pytest.mark.parametrize(
    "command", ["bench", "compare", "convert", "doctor", "eval", "inspect", "sensitivity"]
)
def test_every_command_prints_through_it(command: str) -> None:
    source = (Path(shared.__file__).parent / f"{command}.py").read_text()
    assert "shared.show(" in source and "json.dumps" not in source


def test_a_command_prints_null(capsys: pytest.CaptureFixture[str]) -> None:
    arguments: Any = SimpleNamespace(json=True)
    assert shared.show(arguments, lambda: {"error": np.float64("nan"), "rows": [math.inf]}, pytest.fail) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed, parse_constant=pytest.fail) == {"error": None, "rows": [None]}
