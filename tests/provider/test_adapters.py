"""The keywords of mxort.optimum in onnxruntime itself, as optimum uses them; and adapters without their library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import run

import mxort
import mxort.sentence_transformers
from mxort.errors import MxortError
from tiny_models import mlp


def session_by(model: str, device: str, **options: object) -> dict[str, Any]:
    """A session opened with the keywords, by the provider's name, as optimum does."""
    import onnxruntime as ort

    import mxort.optimum
    from hipsim import harness

    keywords = mxort.optimum.keywords(device=device, device_options=options or None)
    session = ort.InferenceSession(
        model,
        keywords["session_options"],
        providers=[keywords["provider"]],
        provider_options=[keywords.get("provider_options", {})],
    )
    (y,) = session.run(None, {"x": np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)})
    launches = harness.Sim.attach().counters()["launches"]
    return {"provider": keywords["provider"], "y": y.tolist(), "launches": launches}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapters")
    mxort.convert(mlp(folder / "model.onnx"), folder / "converted.onnx")
    return str(folder / "converted.onnx")


def test_the_keywords_of_optimum(converted: str) -> None:
    on_cpu = run(session_by, converted, "cpu")
    on_gpu = run(session_by, converted, "gpu:0")
    assert (on_cpu["provider"], on_cpu["launches"]) == ("CPUExecutionProvider", 0)
    assert on_gpu["provider"] == "MxortExecutionProvider"
    assert on_gpu["launches"] > 0
    # Two products of int8 class on the CPU, each within 1e-2 of the exact one; the GPU is nearer.
    expected = np.array(on_cpu["y"])
    assert np.linalg.norm(np.array(on_gpu["y"]) - expected) < 2e-2 * np.linalg.norm(expected)


def test_without_sentence_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MxortError, match="sentence-transformers cannot be imported"):
        mxort.sentence_transformers.open(tmp_path)
