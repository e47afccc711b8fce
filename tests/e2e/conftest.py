"""The two real models, obtained once by samples/models.py (`make demo` leaves them in build/models)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))

import models


@pytest.fixture(scope="session")
def minilm() -> Path:
    return models.minilm()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return models.smollm2()
