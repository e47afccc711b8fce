"""onnxruntime-genai with mxort.genai: on the simulated GPU, on the CPU, and where it cannot be."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import run

import checkpoints
import mxort
import mxort.genai
from model_folders import genai_folder
from mxort.errors import MxortError


def generated(folder: str, device: str, options: dict[str, object] | None = None) -> dict[str, Any]:
    """Logits behind a prompt, the tokens that follow it, and how often the GPU was called."""
    import onnxruntime_genai as genai

    import mxort.genai
    from hipsim import harness

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = mxort.genai.open(folder, device=device, device_options=options)
    parameters = genai.GeneratorParams(model)
    sim = harness.Sim.attach()
    parameters.set_search_options(max_length=6)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([[3, 5, 7]], np.int32))
    logits = generator.get_logits()[0, -1].tolist()
    steps = []
    while not generator.is_done():
        before = sim.counters()
        generator.generate_next_token()
        steps.append({k: v - before[k] for k, v in sim.counters().items() if k.startswith("copies")})
    launches = sim.counters()["launches"]
    return {
        "logits": logits,
        "tokens": generator.get_sequence(0).tolist(),
        "launches": launches,
        "steps": steps,
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


def test_the_cache_stays_on_the_gpu(tmp_path: Path) -> None:
    """Of a decoder that writes it in place: the inputs lie in pinned memory, the logits come back. Nothing is rounded
    at run time but sums, so that CPU and GPU choose the same tokens."""
    checkpoints.make(tmp_path / "in", "llama", "compressed-tensors")
    mxort.import_checkpoint(tmp_path / "in", tmp_path / "out", table_format="float", accuracy_level=1)
    on_gpu = run(generated, str(tmp_path / "out"), "gpu", {"self_check": False})
    assert on_gpu["tokens"] == run(generated, str(tmp_path / "out"), "cpu")["tokens"]
    for step in on_gpu["steps"][1:]:  # the first token is that of the prompt's logits
        assert step == {"copies_to_device": 0, "copies_to_host": 1, "copies_on_device": 0}


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
