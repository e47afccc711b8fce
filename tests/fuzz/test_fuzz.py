"""Inputs made at random, in processes that may die: none may, and each input ends in one of the ways that are right.

`make check` runs some of each kind; `make check-full` 20,000 operators with up to 10 inputs each, together more than
100,000, and 20,000 models and files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
QUICK = [("operators", 0, 60), ("models", 0, 60), ("hostile", 0, 120)]
FULL = [
    *(("operators", 1000 * i, 1000) for i in range(1, 21)),
    *(("models", 500 * i, 500) for i in range(1, 21)),
    *(("hostile", 500 * i, 500) for i in range(1, 21)),
]


def fuzz(kind: str, first: int, count: int, folder: Path) -> dict[str, int]:
    mark = folder / "seed"
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.worker", kind, str(first), str(count)],
        cwd=TESTS,
        env=os.environ
        | {
            "MXORT_FUZZ_SEED": str(mark),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "support"), str(TESTS.parent)]),
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    seed = mark.read_text() if mark.exists() else "none"
    assert done.returncode == 0, (
        f"{kind}: the process ended with {done.returncode} at seed {seed}: {done.stderr[-2000:]}"
    )
    result = json.loads(done.stdout)
    failures = result["failures"]
    first_of = "\n".join(f"{kind} {f['seed']}: {f['error']}" for f in failures[:5])
    assert not failures, f"{len(failures)} of {count}: seeds {[f['seed'] for f in failures][:50]}\n{first_of}"
    assert sum(result["outcomes"].values()) == count
    outcomes: dict[str, int] = result["outcomes"]
    return outcomes


@pytest.mark.parametrize(("kind", "first", "count"), QUICK, ids=lambda value: str(value))
def test_some(kind: str, first: int, count: int, tmp_path: Path) -> None:
    outcomes = fuzz(kind, first, count, tmp_path)
    assert len(outcomes) > 1, "a generator that always ends in the same way tests one thing"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "first", "count"), FULL, ids=lambda value: str(value))
def test_many(kind: str, first: int, count: int, tmp_path: Path) -> None:
    fuzz(kind, first, count, tmp_path)
