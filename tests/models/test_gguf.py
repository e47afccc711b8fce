"""A GGUF file in, a folder out: bits against the file's, logits against transformers'."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

import checkpoints
import ggufs
import mxort
from generated import generate, reference
from imported import assert_bytes, assert_expert_bytes, last_logits, relative_rms, run
from mxort.models.checkpoint import open_checkpoint
from mxort.models.gguf_checkpoint import open_gguf
from mxort.models.gguf_tensors import Codes, Scales

TOKENS = np.random.default_rng(3).integers(3, checkpoints.VOCABULARY, (1, 12))
EXACT: dict[str, Any] = {"table_format": "float", "accuracy_level": 1}
FLOAT_SUMS = 2e-5
"""As in test_importing.py."""


WITH_EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
DENSE = [name for name in ggufs.ARCHITECTURES if name not in WITH_EXPERTS]
ROPES: dict[str, Any] = {"rope_type": "default", "rope_theta": 5e5}
LONGER = {
    "num_hidden_layers": 6,  # the last one has no window
    "rope_parameters": {
        "full_attention": ROPES,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize("architecture", DENSE)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    other = LONGER if architecture == "gemma3_text" else {"rope_parameters": ROPES}
    tiny = ggufs.make(tmp_path / "tiny.gguf", architecture, **other)
    report = mxort.import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "out", **EXACT)
    assert (report.format, report.architecture) == ("GGUF", type(tiny.model).__name__)
    assert not report.quantized
    assert_bytes(tiny, tmp_path / "out")
    expected = tiny.logits(TOKENS)[0, -1]
    assert relative_rms(last_logits(tmp_path / "out", TOKENS), expected) < FLOAT_SUMS
    settings = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (1, 2)


def test_every_code_and_scale(tmp_path: Path) -> None:
    """A row for each scale, pairs of codes in both halves of a block; gguf's own decoder says what they mean."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 16, (255, 1024), dtype=np.uint8)
    codes[:, :32] = np.arange(32) % 16
    scales = np.repeat(np.arange(255, dtype=np.uint8)[:, None], 32, axis=1)
    blocks = ggufs.mxfp4_blocks(codes, scales)
    (tmp_path / "blocks").write_bytes(blocks.tobytes())
    part = (0, "w")
    got = Codes("w", tmp_path / "blocks", "U8", (255, 512), *part).array()
    np.testing.assert_array_equal(got, codes[:, 0::2] | codes[:, 1::2] << 4)
    kept = Scales("w", tmp_path / "blocks", "U8", (255, 32), *part).array()
    np.testing.assert_array_equal(kept, scales)
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
        decoded = checkpoints.Matrix(codes, scales).values
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_every_type(kind: str, tmp_path: Path) -> None:
    """Weights that are left as they are compute what the file says."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    tiny = ggufs.make(tmp_path / "tiny.gguf", "llama", kind, **wide)
    report = mxort.import_checkpoint(
        tmp_path / "tiny.gguf", tmp_path / "out", library=False, exclude=("*",), **EXACT
    )
    assert not report.kept
    told = any(f"7 tensors in {kind}: dequantised" in warning for warning in report.warnings)
    assert told == (kind not in ("F32", "F16", "BF16"))
    assert relative_rms(run(tmp_path / "out", TOKENS), tiny.logits(TOKENS)) < FLOAT_SUMS


def test_transformers_reads_the_same_of_the_file(tmp_path: Path) -> None:
    """The tests' writer is held to another reader: transformers' own, for all but MXFP4."""
    tiny = ggufs.make(tmp_path / "tiny.gguf", "llama", "Q8_0")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    with torch.no_grad():
        logits = model(torch.from_numpy(TOKENS)).logits.numpy()
    assert relative_rms(logits, tiny.logits(TOKENS)) < FLOAT_SUMS


@pytest.mark.parametrize("bias", [False, True])
def test_biases_of_queries_are_in_the_order_of_their_rows(bias: bool, tmp_path: Path) -> None:
    tiny = ggufs.make(tmp_path / "tiny.gguf", "llama", attention_bias=bias)
    mxort.import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "out", library=False, **EXACT)
    assert relative_rms(run(tmp_path / "out", TOKENS), tiny.logits(TOKENS)) < FLOAT_SUMS


ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def factors(head_dim: int) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3's positions."""
    result = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * ROPE["rope_theta"] ** (i / head_dim)
        if wavelength < 8192 / 4:
            result.append(1.0)
        elif wavelength > 8192 / 1:
            result.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            result.append(1 / ((1 - smooth) / 32 + smooth))
    return np.array(result, np.float32)


def test_positions_of_llama_3(tmp_path: Path) -> None:
    tiny = ggufs.make(
        tmp_path / "tiny.gguf",
        "llama",
        change=lambda writer: writer.add_tensor("rope_freqs.weight", factors(16)),
        rope_parameters=ROPE,
    )
    mxort.import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "out", library=False, **EXACT)
    assert relative_rms(run(tmp_path / "out", TOKENS), tiny.logits(TOKENS)) < FLOAT_SUMS
    ggufs.make(
        tmp_path / "other.gguf",
        "llama",
        change=lambda writer: writer.add_tensor("rope_freqs.weight", np.linspace(1, 4, 8, dtype=np.float32)),
    )
    with pytest.raises(mxort.MxortError, match=r"tensor 'rope_freqs\.weight' scales positions otherwise"):
        open_gguf(tmp_path / "other.gguf")


@pytest.mark.parametrize("kind", ["MXFP4", "BF16", "Q8_0"])
@pytest.mark.parametrize("architecture", WITH_EXPERTS)
def test_experts(architecture: str, kind: str, tmp_path: Path) -> None:
    """Stacks of the file are the checkpoint's experts: bits, and what genai computes with them beside transformers."""
    tiny = ggufs.make(tmp_path / "tiny.gguf", architecture, kind)
    report = mxort.import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "out", exclude=("*",), **EXACT)
    assert report.architecture == type(tiny.model).__name__
    stacks = [row for row in report.kept if row.op_type == "MoE"]
    assert len(stacks) == (4 if kind == "MXFP4" else 0)
    if stacks:
        assert_expert_bytes(tiny, architecture, tmp_path / "out")
    (tokens, got), (expected_tokens, expected) = generate(tmp_path / "out"), reference(tiny.model)
    assert tokens == expected_tokens
    assert relative_rms(got, expected) < FLOAT_SUMS


@pytest.mark.parametrize("architecture", WITH_EXPERTS)
def test_experts_are_those_of_the_checkpoint(architecture: str, tmp_path: Path) -> None:
    """Names, shapes and bits: as the folder of the Hugging Face kind with the same weights is read."""
    tiny = ggufs.make(tmp_path / "tiny.gguf", architecture)
    ours, theirs = open_gguf(tmp_path / "tiny.gguf"), open_checkpoint(tiny.folder)
    assert ours.packed.keys() == theirs.packed.keys()
    for name, packed in ours.packed.items():
        for got, expected in zip(packed.arrays(), theirs.packed[name].arrays(), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert ours.floats.keys() == theirs.floats.keys()
    for name, tensor in ours.floats.items():
        expected = tiny.model.state_dict()[name.replace("block_sparse_moe", "mlp")].numpy()
        np.testing.assert_array_equal(np.asarray(tensor.array(), np.float32), expected)
    keys = ("num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    assert {k: ours.config.get(k) for k in keys} == {k: theirs.config.get(k) for k in keys}
    if architecture == "gpt_oss":
        assert ours.config["rope_parameters"] == theirs.config["rope_parameters"]
        assert ours.config["layer_types"] == theirs.config["layer_types"]


def without(writer: gguf.GGUFWriter, name: str) -> None:
    """Nothing of the tensor ``name`` is written."""
    add = writer.add_tensor
    writer.add_tensor = lambda stored, *rest, **more: (  # type: ignore[method-assign]
        None if stored == name else add(stored, *rest, **more)
    )


EXPERTS_REFUSED = {
    "a missing stack": (
        lambda w: without(w, "blk.1.ffn_up_exps.weight"),
        r"'blk\.1\.ffn_gate_exps\.weight' has no 'blk\.1\.ffn_up_exps\.weight' beside it",
    ),
    "another number of experts": (
        lambda w: w.add_expert_count(3),
        r"_exps\.weight' has the shape \[4, 64, 64\], expected \[E, N, K\] of 3 experts",
    ),
    "more for a row than there are": (
        lambda w: w.add_expert_used_count(9),
        r"num_experts_per_tok: got 9, expected a number from 1 to 4",
    ),
    "a shared expert": (
        lambda w: w.add_expert_shared_count(1),
        r"qwen3moe\.expert_shared_count: got 1, expected 0",
    ),
    "another routing": (
        lambda w: w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID),
        r"qwen3moe\.expert_gating_func: got 2, expected 1",
    ),
    "layers without experts": (
        lambda w: [without(w, f"blk.0.ffn_{part}_exps.weight") for part in ("gate", "up", "down")],
        r"has no tensor 'model\.layers\.0\.mlp\.experts\.0\.gate_proj\.weight'",
    ),
}


@pytest.mark.parametrize("what", EXPERTS_REFUSED)
def test_experts_that_are_refused(what: str, tmp_path: Path) -> None:
    change, named = EXPERTS_REFUSED[what]
    ggufs.make(tmp_path / "tiny.gguf", "qwen3_moe", change=change)
    with pytest.raises(mxort.MxortError, match=named) as caught:
        mxort.import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "out", library=False)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "tiny.gguf") in str(caught.value)
    assert not (tmp_path / "out").exists()


REFUSED = {
    "an unknown architecture": (
        lambda w: w.add_string("general.architecture", "deepseek2"),
        r"general\.architecture: got 'deepseek2', expected one of llama, ",
    ),
    "experts of an architecture without": (
        lambda w: w.add_expert_count(8),
        r"tensor 'blk\.0\.ffn_gate\.weight' is none of the architecture mixtral|expert_used_count: got None",
    ),
    "scaled positions": (
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        r"llama\.rope\.scaling\.type: got 'yarn', expected 'none'",
    ),
    "part of a head rotated": (
        lambda w: w.add_rope_dimension_count(8),
        r"llama\.rope\.dimension_count: got 8, expected 16",
    ),
    "a window": (lambda w: w.add_sliding_window(6), r"llama\.attention\.sliding_window: got 6"),
    "a tensor of another model": (
        lambda w: w.add_tensor("blk.0.ssm_a", np.ones(4, np.float32)),
        r"tensor 'blk\.0\.ssm_a' is none of the architecture llama",
    ),
    "a layer too many": (
        lambda w: w.add_tensor("blk.7.attn_norm.weight", np.ones(64, np.float32)),
        r"LlamaForCausalLM has no place for model\.layers\.7\.input_layernorm\.weight",
    ),
    "a type of integers": (
        lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.int32)),
        r"tensor 'blk\.0\.attn_sinks\.weight' has the type I32, expected one of F32, F16, ",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, tmp_path: Path) -> None:
    change, named = REFUSED[what]

    def changed(writer: gguf.GGUFWriter) -> None:
        for shard in writer.kv_data:
            shard.pop("general.architecture", None) if "unknown" in what else None
        change(writer)

    ggufs.make(tmp_path / "tiny.gguf", change=changed)
    with pytest.raises(mxort.MxortError, match=named) as caught:
        mxort.import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "out", library=False)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "tiny.gguf") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_scale_that_is_no_e8m0(tmp_path: Path) -> None:
    """255 is 2^127 in GGUF, and NaN elsewhere."""
    tiny = ggufs.make(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    matrix = tiny.packed["model.layers.1.mlp.up_proj"]
    block = ggufs.mxfp4_blocks(matrix.codes, matrix.scales).tobytes()
    assert data.count(block) == 1
    (tmp_path / "tiny.gguf").write_bytes(data.replace(block, b"\xff" + block[1:]))
    with pytest.raises(mxort.MxortError, match=r"'blk\.1\.ffn_up\.weight' has the scale 255"):
        mxort.import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "out", library=False)


def header(tensors: int = 0, pairs: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


HOSTILE = {
    "empty": b"",
    "no magic": b"GGML" + header()[4:],
    "an old version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "more pairs than bytes": header(pairs=1 << 60),
    "more tensors than bytes": header(tensors=1 << 60),
    "a text without end": header(pairs=1, rest=struct.pack("<Q", 1 << 62) + b"abc"),
    "an array without end": header(
        pairs=1, rest=text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 62) + bytes(1000)
    ),
    "arrays in arrays": header(pairs=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1) * 2000),
    "an unknown kind of value": header(pairs=1, rest=text(b"a") + struct.pack("<I", 77)),
    "more dimensions than bytes": header(1, rest=text(b"w") + struct.pack("<I", 1 << 31)),
    "a product of dimensions beyond 64 bits": header(
        1, rest=text(b"w") + struct.pack("<IQQIQ", 2, 1 << 33, 1 << 33, 0, 0) + bytes(64)
    ),
    "a tensor beyond the end": header(
        1, rest=text(b"w") + struct.pack("<IQIQ", 1, 64, 0, 1 << 40) + bytes(64)
    ),
    "a tensor of no type": header(1, rest=text(b"w") + struct.pack("<IQIQ", 1, 64, 999, 0) + bytes(64)),
    "no elements": header(1, rest=text(b"w") + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(64)),
    "half a block": header(1, rest=text(b"w") + struct.pack("<IQIQ", 1, 16, 39, 0) + bytes(64)),
    "one tensor on another": header(
        2, rest=b"".join(text(name) + struct.pack("<IQIQ", 1, 8, 0, 0) for name in (b"v", b"w")) + bytes(64)
    ),
    "a name twice": header(2, rest=(text(b"w") + struct.pack("<IQIQ", 1, 8, 0, 0)) * 2 + bytes(96)),
    "an alignment of 3": header(
        pairs=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 3) + bytes(64)
    ),
    "no architecture": header(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers(what: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(HOSTILE[what])
    with pytest.raises(mxort.MxortError) as caught:
        mxort.import_checkpoint(tmp_path / "bad.gguf", tmp_path / "out")
    assert str(caught.value).startswith(f"{tmp_path / 'bad.gguf'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["llama", *WITH_EXPERTS])
@pytest.mark.parametrize("seed", range(2))
def test_fuzzed_headers(seed: int, architecture: str, tmp_path: Path) -> None:
    """A byte here and there, or an end too early: an error of one line, or a file that reads as another."""
    layers = {"num_hidden_layers": 1}
    if architecture == "gpt_oss":
        layers["layer_types"] = ["full_attention"]
    ggufs.make(tmp_path / "tiny.gguf", architecture, **layers)
    good = (tmp_path / "tiny.gguf").read_bytes()
    head = good.index(b"token_embd.weight") + 2000
    rng = np.random.default_rng(seed)
    path, refused = tmp_path / "bad.gguf", 0
    for _ in range(60):
        bad = bytearray(good)
        for at in rng.integers(0, head, rng.integers(1, 4)):
            bad[at] = rng.integers(0, 256)
        path.write_bytes(bad[: rng.integers(0, len(bad))] if rng.random() < 0.3 else bad)
        try:
            opened = open_gguf(path)
            for tensor in (*opened.floats.values(), *opened.packed.values()):
                assert tensor.nbytes <= len(good)
        except mxort.MxortError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(path) in str(error)
    assert refused > 5
