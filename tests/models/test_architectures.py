"""Folders run by onnxruntime-genai, beside transformers' model of the same weights in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints
import mxort
from generated import FLOAT_SUMS, generate, reference
from mxort.models import configuration


@pytest.mark.parametrize("architecture", checkpoints.ARCHITECTURES)
def test_generates_what_transformers_does(architecture: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "compressed-tensors")
    report = mxort.import_checkpoint(
        tiny.folder, tmp_path / "out", table_format="float", accuracy_level=1, op_types=("MatMul",)
    )
    assert report.kept
    tokens, logits = generate(tmp_path / "out")
    expected_tokens, expected = reference(tiny.model)
    assert tokens == expected_tokens
    assert np.linalg.norm(logits - expected) < FLOAT_SUMS * np.linalg.norm(expected)


def test_every_architecture_that_is_said_to_agree_is_here() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    names = {
        AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(name))].__name__
        for name in checkpoints.ARCHITECTURES
    }
    assert names == configuration.COMPARED


@pytest.mark.parametrize("architecture", checkpoints.ARCHITECTURES)
def test_tied_embeddings(architecture: str, tmp_path: Path) -> None:
    """Where config.json does not say it, the architecture does: Gemma is tied."""
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "quark", tie_word_embeddings=True)
    path = tiny.folder / "config.json"
    config = json.loads(path.read_text())
    if "gemma" in architecture:
        del config["tie_word_embeddings"]
    path.write_text(json.dumps(config))
    mxort.import_checkpoint(
        tiny.folder, tmp_path / "out", table_format="float", accuracy_level=1, op_types=("MatMul",)
    )
    tokens, logits = generate(tmp_path / "out")
    expected_tokens, expected = reference(tiny.model)
    assert tokens == expected_tokens
    assert np.linalg.norm(logits - expected) < FLOAT_SUMS * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_a_llama_with_positions_that_the_builder_does_not_know_is_refused(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark", rope_parameters=rope)
    with pytest.raises(mxort.MxortError, match=f"rope_type: got '{kind}', expected default or llama3"):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 1e4,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_llama3_positions(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark", rope_parameters=LLAMA3)
    mxort.import_checkpoint(tiny.folder, tmp_path / "out", table_format="float", accuracy_level=1)
    _, logits = generate(tmp_path / "out")
    _, expected = reference(tiny.model)
    assert np.linalg.norm(logits - expected) < FLOAT_SUMS * np.linalg.norm(expected)


def older_llama(config: dict[str, Any]) -> None:
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}


def older_gemma3(config: dict[str, Any]) -> None:
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["full_attention"]["rope_theta"]
    config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    config["sliding_window_pattern"] = 2
    del config["layer_types"]


@pytest.mark.parametrize(
    ("architecture", "older", "settings"),
    [
        ("llama", older_llama, {"rope_parameters": LLAMA3}),
        ("gemma3_text", older_gemma3, {"layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_configurations_of_older_transformers(
    architecture: str, older: Callable[[dict[str, Any]], None], settings: dict[str, Any], tmp_path: Path
) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "quark", **settings)
    path = tiny.folder / "config.json"
    config = json.loads(path.read_text())
    older(config)
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))
    mxort.import_checkpoint(tiny.folder, tmp_path / "out", table_format="float", accuracy_level=1)
    tokens, logits = generate(tmp_path / "out")
    expected_tokens, expected = reference(tiny.model)
    assert tokens == expected_tokens
    assert np.linalg.norm(logits - expected) < FLOAT_SUMS * np.linalg.norm(expected)


@pytest.mark.parametrize("key", ["max_position_embeddings", "num_hidden_layers", "head_dim"])
@pytest.mark.parametrize("value", [10**12, -1, 0, "8", [1]])
def test_sizes_that_cannot_be_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark")
    path = tiny.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(mxort.MxortError, match=f"{key}: got .*, expected a number from 1 to"):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")


@pytest.mark.parametrize("architecture", ["deepseek_v3", "olmoe"])
def test_experts_that_are_not_imported_are_refused(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    settings = AutoConfig.for_model(architecture).to_dict() | {"architectures": [architecture]}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    checkpoints.save_tensors(folder, {"x": torch.zeros(2)})
    with pytest.raises(
        mxort.MxortError, match=r"has \d+ experts \(.*\); those of GptOssForCausalLM, Mixtral"
    ):
        mxort.import_checkpoint(folder, tmp_path / "out")
