"""Whole models on the provider: every node but arithmetic on shapes is there, nothing is copied but inputs and outputs,
and results are those of the same weights elsewhere."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from simulated import run

import checkpoints
import mxort
from generated import STEPS, TOKENS, reference

SMOLLM2, MINILM = (Path(__file__).parents[2] / "build" / "models" / name for name in ("smollm2", "minilm"))
"""`make demo` leaves them there."""

EXACT: dict[str, Any] = {"table_format": "float", "accuracy_level": 1}
"""A recipe with which nothing is rounded but sums: products of activations split into terms that hold them."""

SHAPES = {"Cast", "Concat", "Equal", "Gather", "Range", "Reshape", "Slice", "Squeeze", "Unsqueeze", "Where"}
"""What may stay on the CPU, where it works on the shapes of tensors."""

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma", "gpt_oss", "qwen3_moe"]
OTHERS = ["smollm3", "granite", "ernie4_5", "hunyuan_v1_dense", "mixtral"]

WINDOWS = ["mistral"]
OTHER_WINDOWS = ["phi3", "gemma2", "gemma3_text"]
"""Whose caches hold a window, of 6 positions: half a prompt."""

CONFIGURATIONS = {"gpt_oss": {"layer_types": ["full_attention", "full_attention"], "sliding_window": -1}}
"""Else every second layer has a cache that holds a window, and mxort.Generator takes caches of one capacity."""


def decoder(folder: str, tokens: list[int], steps: int, target: str, capacity: int = 0) -> dict[str, Any]:
    """In the child: a prompt through an ordinary session, then mxort.Generator; what both cost."""
    import json

    import gpu

    import mxort

    head = json.loads((Path(folder) / "genai_config.json").read_text())["model"]["decoder"]["head_size"]
    prompt = np.array([tokens])
    result: dict[str, Any] = {}
    with gpu.registered():
        opened = gpu.session(f"{folder}/model.onnx")
        result["placement"] = gpu.placement(opened)
        feeds = {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}
        if any(value.name == "position_ids" for value in opened.get_inputs()):
            feeds["position_ids"] = np.arange(prompt.shape[1])[None]
        result["given"] = len(feeds)
        for value in opened.get_inputs():
            if value.name.startswith("past"):
                shape = (
                    1,
                    value.shape[1],
                    capacity,
                    value.shape[3] if isinstance(value.shape[3], int) else head,
                )
                feeds[value.name] = np.zeros(shape, np.float32)
        result["caches"] = len(feeds) - result["given"]
        opened.run(None, feeds)
        before = gpu.sim.counters()
        np.save(target, opened.run(["logits"], feeds)[0][0])
        result["copies"] = {k: v - before[k] for k, v in gpu.sim.counters().items() if k.startswith("copies")}
        del opened
    generator = mxort.Generator(folder, max_length=64, device_options={"self_check": False})
    result["tokens"], result["steps"] = [], []
    before, calls = gpu.sim.counters(), gpu.sim.calls()
    for token in generator.generate(tokens, steps):
        now, made = gpu.sim.counters(), gpu.sim.calls()
        spent = {k: now[k] - before[k] for k in now if now[k] != before[k]}
        result["steps"].append(
            spent | {"graphs": made.get("hipGraphLaunch", 0) - calls.get("hipGraphLaunch", 0)}
        )
        before, calls = now, made
        result["tokens"].append(token)
    return result


def left_to_the_cpu(placement: dict[str, list[str]]) -> list[str]:
    return sorted(set(placement.get("CPUExecutionProvider", [])) - SHAPES)


def check_decoder(architecture: str, tmp_path: Path, capacity: int = 0) -> None:
    fmt = "gpt-oss" if architecture == "gpt_oss" else "compressed-tensors"
    tiny = checkpoints.make(tmp_path / "in", architecture, fmt, **CONFIGURATIONS.get(architecture, {}))
    # gpt-oss' checkpoints have nothing but experts in MXFP4.
    kept = {"exclude": ["*"]} if fmt == "gpt-oss" else {}
    mxort.import_checkpoint(tmp_path / "in", tmp_path / "out", **EXACT, **kept)
    prompt = TOKENS[0].tolist()
    result = run(decoder, str(tmp_path / "out"), prompt, STEPS, str(tmp_path / "logits.npy"), capacity)
    assert left_to_the_cpu(result["placement"]) == []
    # The inputs that hold anything, and caches that do; of one output each a copy back.
    assert result["copies"]["copies_to_device"] <= result["given"] + (result["caches"] if capacity else 0)
    assert result["copies"]["copies_to_host"] == 1
    want = tiny.logits(TOKENS)[0]
    got = np.load(tmp_path / "logits.npy")
    # Twice what two orders of float sums differ by (tests/support/generated.py): exp is not the CPU's either.
    assert np.linalg.norm(got - want) <= 4e-5 * np.linalg.norm(want)
    assert result["tokens"] == reference(tiny.model)[0]
    for step in result["steps"][1:]:
        assert step["graphs"] == 1  # one launch a token
        assert step["copies_to_host"] == 1
        assert step["bytes_to_host"] == 8  # the token
        assert step.get("copies_to_device", 0) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoders(architecture: str, tmp_path: Path) -> None:
    check_decoder(architecture, tmp_path)


@pytest.mark.parametrize("architecture", WINDOWS)
def test_decoders_whose_caches_hold_a_window(architecture: str, tmp_path: Path) -> None:
    check_decoder(architecture, tmp_path, capacity=6)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHER_WINDOWS)
def test_other_decoders_whose_caches_hold_a_window(architecture: str, tmp_path: Path) -> None:
    check_decoder(architecture, tmp_path, capacity=6)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHERS)
def test_other_decoders(architecture: str, tmp_path: Path) -> None:
    check_decoder(architecture, tmp_path)


@pytest.mark.slow
@pytest.mark.e2e
def test_smollm2(tmp_path: Path) -> None:
    """All 30 layers, converted with no options; beside the same file on the CPU, whose activations are rounded."""
    mxort.convert_folder(SMOLLM2, tmp_path / "out")
    prompt = [504, 1290, 338, 260]
    result = run(decoder, str(tmp_path / "out"), prompt, 3, str(tmp_path / "logits.npy"))
    assert left_to_the_cpu(result["placement"]) == []
    count = collections.Counter(result["placement"]["MxortExecutionProvider"])
    assert (count["GroupQueryAttention"], count["MatMulMXINT8"]) == (30, 1)
    assert [step["graphs"] for step in result["steps"][1:]] == [1, 1]
    # A layer: append and attention, and four products, of which two normalise their rows. Eight for the rest: the
    # mask's arithmetic, the embedding, the head, the choice of a token.
    assert [step["launches"] for step in result["steps"]] == [6 * 30 + 8] * 3
    session = mxort.InferenceSession(tmp_path / "out" / "model.onnx")
    feeds = {"input_ids": np.array([prompt]), "attention_mask": np.ones((1, 4), np.int64)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, 3, 0, 64), np.float32)
    want = session.run(["logits"], feeds)[0][0]
    got = np.load(tmp_path / "logits.npy")
    # 150 products, each within 7e-3 on the CPU (level 4), errors add as the root of the sum of squares.
    assert np.linalg.norm(got - want) <= 7e-3 * np.sqrt(150) * np.linalg.norm(want)


def encoder(model: str, inputs: str, target: str) -> dict[str, Any]:
    import gpu

    with gpu.registered():
        opened = gpu.session(model)
        feeds = dict(np.load(inputs))
        opened.run(None, feeds)
        before = gpu.sim.counters()
        names = [o.name for o in opened.get_outputs()]
        np.savez(target, **dict(zip(names, opened.run(names, feeds), strict=True)))
        copies = {k: v - before[k] for k, v in gpu.sim.counters().items() if k.startswith("copies")}
        result = {
            "placement": gpu.placement(opened),
            "copies": copies,
            "inputs": len(feeds),
            "outputs": len(names),
        }
        del opened
    return result | {"live": gpu.live()}


@pytest.mark.e2e
def test_minilm_as_it_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "minilm.onnx"
    mxort.convert(MINILM / "model.onnx", path)
    tokens = np.random.default_rng(1).integers(1000, 30000, (2, 10))
    given = [i.name for i in onnx.load(path, load_external_data=False).graph.input]
    feeds = {name: tokens if "ids" in name else np.ones_like(tokens) for name in given}
    np.savez(tmp_path / "x.npz", **feeds)
    result = run(encoder, str(path), str(tmp_path / "x.npz"), str(tmp_path / "y.npz"))
    assert left_to_the_cpu(result["placement"]) == []
    assert result["copies"]["copies_to_device"] == result["inputs"]
    assert result["copies"]["copies_to_host"] == result["outputs"]
    assert result["live"] == {}
    got = np.load(tmp_path / "y.npz")
    session = mxort.InferenceSession(path)
    for value, want in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        # 18 products, each within 7e-3 on the CPU (level 4).
        assert np.linalg.norm(got[value.name] - want) <= 7e-3 * np.sqrt(18) * np.linalg.norm(want), value.name
