"""Checkpoints with experts become MoEMXFP4: the bytes, the logits beside transformers', what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

import checkpoints
import expert_tensors
import mxort
from generated import FLOAT_SUMS, TOKENS, generate, reference
from imported import assert_expert_bytes, attribute, made_of
from mxort.converters import functions

KEPT = [
    ("gpt_oss", "gpt-oss"),
    *(
        (a, f)
        for a in expert_tensors.PARTS
        for f in ("quark", "compressed-tensors", "modelopt", "auto-round")
    ),
]

EXACT: dict[str, Any] = {"table_format": "float", "accuracy_level": 1, "exclude": ["*"], "library": False}
"""What is MXFP4 already is kept all the same. Without the library onnxruntime runs the function."""


@pytest.mark.parametrize(("architecture", "fmt"), KEPT)
def test_bytes_and_logits(architecture: str, fmt: str, tmp_path: Path) -> None:
    """Every byte of every expert is in the file, at its expert's and row's place, and none is anywhere else."""
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, fmt)
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", **EXACT)
    assert len([row for row in report.kept if row.op_type == "MoE"]) == 4  # two layers of two stacks
    assert {row.reason for row in report.conversion.skipped} == {"excluded by pattern '*'"}
    assert_expert_bytes(tiny, architecture, tmp_path / "out")
    (tokens, got), (expected_tokens, expected) = generate(tmp_path / "out"), reference(tiny.model)
    assert tokens == expected_tokens
    assert np.linalg.norm(got - expected) < FLOAT_SUMS * np.linalg.norm(expected)


def test_tensors_of_gpt_oss_are_copied(tmp_path: Path) -> None:
    """Against the file itself, in the shape that the operator has for them."""
    tiny = checkpoints.make(tmp_path / "checkpoint", "gpt_oss", "gpt-oss", shards=3)
    mxort.import_checkpoint(tiny.folder, tmp_path / "out", **EXACT)
    tensors: dict[str, torch.Tensor] = {}
    for shard in tiny.folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    layers = made_of(tmp_path / "out")
    for number, (values, _, node) in enumerate(layers.values()):
        for product in ("gate_up", "down"):
            name = f"model.layers.{number}.mlp.experts.{product}_proj"
            assert tensors[f"{name}_blocks"].numpy().tobytes() == values[f"{product}_B"].tobytes()
            assert tensors[f"{name}_scales"].numpy().tobytes() == values[f"{product}_B_scale"].tobytes()
        assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
            "k": 2,
            "normalize_routing_weights": 1,
            "activation": functions.SILU,
            "swiglu_fusion": 1,
            "activation_alpha": pytest.approx(1.702),
            "activation_beta": 1.0,
            "swiglu_limit": 7.0,
            "rotation": 1,
            "activation_format": b"none",
            "accuracy_level": 1,
        }


def test_activations_are_what_the_checkpoint_says(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "mixtral", "quark-w4a4")
    mxort.import_checkpoint(tiny.folder, tmp_path / "out", table_format="float")
    assert {attribute(n, "activation_format") for _, _, n in made_of(tmp_path / "out").values()} == {b"mxfp4"}


@pytest.mark.parametrize("architecture", ["gpt_oss", *expert_tensors.PARTS])
def test_float_experts_are_rounded_as_the_recipe_says(architecture: str, tmp_path: Path) -> None:
    """Weights that MXFP4 holds lose nothing; the bfloat16 ones of the checkpoint some 20 dB."""
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "float")
    report = mxort.import_checkpoint(
        tiny.folder, tmp_path / "out", table_format="float", accuracy_level=1, library=False
    )
    rows = [row for row in report.quantized if row.op_type == "MoE"]
    assert len(rows) == 4 and all(18 < (row.sqnr_db or 0) < 25 for row in rows)
    got, expected = generate(tmp_path / "out")[1][0], reference(tiny.model)[1][0]
    assert 1e-3 < np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.3
    for _, _, node in made_of(tmp_path / "out").values():
        assert attribute(node, "swiglu_fusion") == 1


@pytest.mark.parametrize("architecture", ["gpt_oss", *expert_tensors.PARTS])
def test_experts_that_stay_float_run(architecture: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "float")
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", **EXACT)
    rows = [row for row in report.conversion.skipped if row.op_type == "MoE"]
    held = sum(p.numel() * 4 for n, p in tiny.model.named_parameters() if ".experts." in n)
    assert len(rows) == 2 and sum(row.original_bytes for row in rows) == held
    (tokens, got), (expected_tokens, expected) = generate(tmp_path / "out"), reference(tiny.model)
    assert tokens == expected_tokens
    assert np.linalg.norm(got - expected) < FLOAT_SUMS * np.linalg.norm(expected)


def test_a_wide_router_stays_float(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "qwen3_moe", "float", num_experts=32)
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    reasons = {row.node: row.reason for row in report.conversion.skipped}
    for layer in range(2):
        name = f"/model/layers.{layer}/moe/router/MatMul"
        assert reasons[name] == f"router: decides what '/model/layers.{layer}/moe/MoE' chooses"


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "data.npz", input_ids=TOKENS, attention_mask=np.ones_like(TOKENS))
    return str(tmp_path / "data.npz")


def test_calibration_goes_through_experts_that_are_kept(data: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "gpt_oss", "gpt-oss")
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", calibration=data, table_format="float")
    assert {row.op_type for row in report.kept} == {"MoE"}
    assert {row.algorithm for row in report.quantized} == {"mr-gptq"}


@pytest.mark.parametrize("architecture", ["gpt_oss", *expert_tensors.PARTS])
def test_float_experts_are_calibrated(architecture: str, data: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "float")
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", calibration=data, table_format="float")
    rows = [row for row in report.quantized if row.op_type == "MoE"]
    assert [row.algorithm for row in rows] == ["mr-gptq"] * 4
    assert all(sum(row.expert_rows) == 2 * TOKENS.size and row.rotation == 32 for row in rows)
    got, expected = generate(tmp_path / "out")[1][0], reference(tiny.model)[1][0]
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.3


@pytest.mark.slow
def test_what_the_builder_makes_for_cuda_keeps_its_bytes(tmp_path: Path) -> None:
    """onnxruntime-genai's own QMoE of the checkpoint's MXFP4, which no CPU runs."""
    tiny = checkpoints.make(tmp_path / "checkpoint", "gpt_oss", "gpt-oss")
    folders = ["-i", str(tiny.folder), "-o", str(tmp_path / "built"), "-c", str(tmp_path / "cache")]
    options = ["-p", "int4", "-e", "cuda", "--extra_options", "moe_quant_type=mxfp4"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *folders, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = onnx.load(tmp_path / "built" / "model.onnx", load_external_data=False)
    assert [n.op_type for n in built.graph.node if "MoE" in n.op_type] == ["QMoE"] * 2
    (tmp_path / "out").mkdir()
    report = mxort.convert(tmp_path / "built" / "model.onnx", tmp_path / "out" / "model.onnx")
    assert [row.algorithm for row in report.converted if row.op_type == "QMoE"] == ["checkpoint"] * 4
    for number, (values, _, _) in enumerate(made_of(tmp_path / "out").values()):
        for product in ("gate_up", "down"):
            matrix = tiny.packed[f"model.layers.{number}.mlp.experts.{product}_proj"]
            np.testing.assert_array_equal(values[f"{product}_B"], matrix.bytes)
            np.testing.assert_array_equal(values[f"{product}_B_scale"], matrix.scales)


def changed(folder: Path, change: Any) -> None:
    """The checkpoint with other tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    checkpoints.save_tensors(folder, tensors)


def missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    tensors.pop("model.layers.1.block_sparse_moe.experts.2.w3.weight_scale", None)


def short(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    tensors[name] = tensors[name][:32].clone()


def one_more(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        if ".experts.3." in name:
            tensors[name.replace(".experts.3.", ".experts.4.")] = tensors[name].clone()


def one_float(tensors: dict[str, torch.Tensor]) -> None:
    for part in ("w1", "w3"):
        name = f"model.layers.0.block_sparse_moe.experts.1.{part}.weight"
        tensors[name] = torch.zeros(96, 64, dtype=torch.bfloat16)
        del tensors[name + "_scale"]


@pytest.mark.parametrize(
    ("fmt", "change", "message"),
    [
        ("float", missing, r"has no tensor 'model.layers.1.block_sparse_moe.experts.2.w3.weight'"),
        ("quark", missing, r"has no tensor 'model.layers.1.block_sparse_moe.experts.2.w3.weight'"),
        ("float", short, r"the experts have 224 rows, the model needs \[4, 64, 96\]"),
        ("quark", one_more, r"is MXFP4, but no weight of MixtralForCausalLM"),
        ("quark", one_float, r"some experts are MXFP4 and some are not"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(fmt: str, change: Any, message: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "mixtral", fmt)
    changed(tiny.folder, change)
    with pytest.raises(mxort.MxortError, match=message) as caught:
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_only_layers": [0]}, "some layers have no experts"),
        ({"decoder_sparse_step": 2}, "some layers have no experts"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', expected 'silu' for experts"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok: got 0, expected a number from 1 to 4"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok: got 5, expected a number from 1 to 4"),
        ({"num_experts_per_tok": "2"}, "num_experts_per_tok: got '2', expected a number from 1 to 4"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "qwen3_moe", "quark")
    path = tiny.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(mxort.MxortError, match=message):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
