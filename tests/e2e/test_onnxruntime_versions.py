"""One converted file, every runtime: releases of onnxruntime with the library, stock onnxruntime, onnx.reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest

import mxort

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
OLD_RELEASES = sorted((ROOT / "build" / "ort").glob("[0-9]*[0-9]"))  # the Makefile installs them
LEVEL_3_ERROR = 3e-3
"""What the operator promises for its default accuracy level, relative RMS."""

RUN = """
import sys, numpy as np, onnxruntime as ort
model, library, inputs, outputs = sys.argv[1:]
options = ort.SessionOptions()
if library:
    options.register_custom_ops_library(library)
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
results = session.run(None, dict(np.load(inputs)))
np.savez(outputs, **{str(i): r for i, r in enumerate(results)})
print(ort.__version__)
"""


@pytest.fixture(scope="module")
def converted(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("versions") / "minilm.onnx"
    mxort.convert(minilm / "model.onnx", out, convert_embedding=True)
    return out


@pytest.fixture(scope="module")
def inputs(converted: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (2, 24))
    return {i.name: ids if "ids" in i.name else np.ones_like(ids) for i in onnx.load(converted).graph.input}


@pytest.fixture(scope="module")
def reference(converted: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnx.reference.ReferenceEvaluator(str(converted)).run(None, inputs)


def run(
    release: Path | None, library: str, model: Path, inputs: dict[str, np.ndarray]
) -> tuple[str, list[np.ndarray]]:
    files = model.parent / "inputs.npz", model.parent / "outputs.npz"
    np.savez(files[0], **inputs)
    environment = {**os.environ, "PYTHONPATH": str(release or "")}
    command = [sys.executable, "-c", RUN, str(model), library, *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = np.load(files[1])
    return done.stdout.strip(), [results[str(i)] for i in range(len(results))]


def assert_agree(got: list[np.ndarray], expected: list[np.ndarray], bound: float) -> None:
    for a, b in zip(got, expected, strict=True):
        error = np.sqrt(
            ((a.astype(np.float64) - b) ** 2).sum() / max((b.astype(np.float64) ** 2).sum(), 1e-30)
        )
        assert error <= bound


def test_the_old_releases_are_there() -> None:
    assert {p.name.rsplit(".", 1)[0] for p in OLD_RELEASES} >= {"1.22", "1.24"}, "run through `make test`"


@pytest.mark.parametrize("release", [*OLD_RELEASES, None], ids=lambda p: p.name if p else "newest")
def test_with_the_library(
    release: Path | None, converted: Path, inputs: dict[str, np.ndarray], reference: list[np.ndarray]
) -> None:
    version, results = run(release, mxort.get_library_path(), converted, inputs)
    assert version == (release.name if release else onnxruntime.__version__)
    assert_agree(results, reference, LEVEL_3_ERROR)


@pytest.mark.parametrize("release", [*OLD_RELEASES, None], ids=lambda p: p.name if p else "newest")
def test_without_the_library(
    release: Path | None, converted: Path, inputs: dict[str, np.ndarray], reference: list[np.ndarray]
) -> None:
    """The function runs in float; a transformer's layers amplify rounding (2^-24) by some hundreds."""
    _, results = run(release, "", converted, inputs)
    assert_agree(results, reference, 1e-4)
