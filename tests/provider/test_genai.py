"""onnxruntime-genai with mxort.genai: on the simulated GPU, on the CPU, and where it cannot be."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import run

import mxort
import mxort.genai
from model_folders import genai_folder
from mxort.errors import MxortError


def generated(folder: str, device: str, **options: object) -> dict[str, Any]:
    """Logits behind a prompt, the tokens that follow it, and how often the GPU was called."""
    import onnxruntime_genai as genai

    import mxort.genai
    from hipsim import harness

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = mxort.genai.open(folder, device=device, device_options=options or None)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=6)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([[3, 5, 7]], np.int32))
    logits = generator.get_logits()[0, -1].tolist()
    while not generator.is_done():
        generator.generate_next_token()
    launches = harness.Sim.attach().counters()["launches"]
    return {
        "logits": logits,
        "tokens": generator.get_sequence(0).tolist(),
        "launches": launches,
        "warnings": [str(warning.message) for warning in caught],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted as a folder, for both of its layers to be the GPU's."""
    made = tmp_path_factory.mktemp("genai")
    mxort.convert_folder(genai_folder(made / "in"), made / "out")
    return made / "out"


def test_on_a_gpu(folder: Path) -> None:
    on_cpu = run(generated, str(folder), "cpu")
    on_gpu = run(generated, str(folder), "gpu")
    assert on_cpu["launches"] == 0 < on_gpu["launches"]
    # Four products of int8 class on the CPU, each within 1e-2 of the exact one; the GPU is nearer.
    expected = np.array(on_cpu["logits"])
    assert np.linalg.norm(np.array(on_gpu["logits"]) - expected) < 4e-2 * np.linalg.norm(expected)
    assert on_gpu["tokens"][:4] == on_cpu["tokens"][:4]
    assert on_gpu["warnings"] == on_cpu["warnings"] == []


def test_a_model_that_was_converted_as_a_file(folder: Path, tmp_path: Path) -> None:
    """Its folder has no library, and its configuration names none."""
    source = genai_folder(tmp_path / "in", external=False)
    mxort.convert(source / "model.onnx", source / "converted.onnx")
    (source / "converted.onnx").rename(source / "model.onnx")
    result = run(generated, str(source), "cpu")
    assert result["logits"] == run(generated, str(folder), "cpu")["logits"]


def test_auto_without_a_gpu_warns(folder: Path) -> None:
    result = run(generated, str(folder), "auto", MXORT_HIP_LIBRARY="absent.so")
    (warning,) = result["warnings"]
    assert warning.startswith("mxort runs on the CPU: ")


@pytest.mark.parametrize(
    ("name", "device", "named"),
    [
        ("in", "gpu:7", "device 'gpu:7' cannot be used"),
        ("in", "tpu", "expected auto, cpu, gpu or gpu:N"),
        ("absent", "cpu", "absent: onnxruntime-genai cannot open it: "),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, name: str, device: str, named: str) -> None:
    genai_folder(tmp_path / "in")
    with pytest.raises(MxortError) as caught:
        mxort.genai.open(tmp_path / name, device=device)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_genai(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MxortError, match="onnxruntime-genai cannot be imported"):
        mxort.genai.open(tmp_path)
