"""A checkpoint in, a folder out: bytes against the checkpoint, logits against transformers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

import checkpoints
import mxort
from mxort.converters import functions, verify
from mxort.models import builder, staged_folder

TOKENS = np.random.default_rng(3).integers(3, checkpoints.VOCABULARY, (1, 12))
EXACT: dict[str, Any] = {"table_format": "float", "accuracy_level": 1}
"""A recipe with which nothing is rounded but sums."""

FLOAT_SUMS = 2e-5
"""Relative RMS of two models that differ in the order of their float sums: some 10 products of up to 96 terms in a row,
each of 2^-24 times the root of its terms; norms and softmax pass that on. Ten times what was seen."""


def weights(folder: Path) -> dict[str, tuple[onnx.NodeProto, list[str], np.ndarray, np.ndarray]]:
    """(node, the checkpoint's names, codes, scales) by the name of the weight's own node."""
    model = onnx.load(folder / "model.onnx")
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.domain != "mxort" or not node.op_type.endswith("MXFP4"):
            continue
        notes = {entry.key: entry.value for entry in node.metadata_props}
        for operand in range(functions.operands_of(node.op_type)):
            name = notes["mxort_factor"] if operand else node.name
            sources = json.loads(notes["mxort_factor." * operand + "mxort.checkpoint"])
            codes, scales = (arrays[key] for key in node.input[1 + 4 * operand : 3 + 4 * operand])
            found[name] = (node, sources, codes, scales)
    return found


def run(folder: Path, tokens: np.ndarray, register: bool = True) -> np.ndarray:
    """The logits of int64 [1, n] tokens, without a past."""
    options = ort.SessionOptions()
    if register:
        mxort.register(options)
    session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    head_size = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["head_size"]
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, head_size), np.float32)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(tokens.shape[1])[None]
    return session.run(["logits"], feeds)[0]


def relative_rms(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def rows_of(tiny: checkpoints.Tiny, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of codes and scales that a node's metadata names: ``name`` or ``name[start:stop]``."""
    name, _, rows = source.removesuffix("]").partition("[")
    matrix = tiny.packed[name.removesuffix(".weight")]
    part = slice(*map(int, rows.split(":"))) if rows else slice(None)
    return matrix.bytes[part], matrix.scales[part]


def assert_bytes(tiny: checkpoints.Tiny, folder: Path) -> None:
    """Every row of every MXFP4 weight of the checkpoint is in the model, unchanged."""
    rows: dict[str, int] = {}
    for name, (_, sources, codes, scales) in weights(folder).items():
        if sources[0].partition(".weight")[0] not in tiny.packed:
            continue
        parts = [rows_of(tiny, source) for source in sources]
        np.testing.assert_array_equal(codes, np.concatenate([part[0] for part in parts]), name)
        np.testing.assert_array_equal(scales, np.concatenate([part[1] for part in parts]), name)
        rows |= {source: len(part[0]) for source, part in zip(sources, parts, strict=True)}
    assert sum(rows.values()) == sum(len(matrix.codes) for matrix in tiny.packed.values()) > 0


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("fmt", checkpoints.OF_MATRICES)
def test_every_format(fmt: str, architecture: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, fmt)
    report = mxort.import_checkpoint(
        tiny.folder, tmp_path / "out", library=False, float_activations=True, **EXACT
    )
    assert len(report.kept) == 2 * 5  # query, key and value are one product
    assert not report.quantized
    assert_bytes(tiny, tmp_path / "out")
    assert relative_rms(run(tmp_path / "out", TOKENS), tiny.logits(TOKENS)) < FLOAT_SUMS


@pytest.mark.parametrize("architecture", ["phi3", "qwen3", "gemma3_text"])
def test_merged_and_cut_projections_keep_their_bytes(architecture: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "quark", shards=3)
    mxort.import_checkpoint(tiny.folder, tmp_path / "out", library=False, **EXACT)
    assert_bytes(tiny, tmp_path / "out")


def test_projections_of_different_kinds_are_not_merged(tmp_path: Path) -> None:
    """A float key beside a packed query: merged, the query would be rounded a second time."""
    tiny = checkpoints.make(
        tmp_path / "checkpoint",
        "qwen2",
        "quark",
        quantize=lambda module: "layers." in module and module != "model.layers.0.self_attn.k_proj",
    )
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", library=False, exclude=("*",), **EXACT)
    assert_bytes(tiny, tmp_path / "out")
    nodes = {site.node for site in report.kept}
    assert "/model/layers.0/attn/q_proj/MatMul" in nodes
    assert "/model/layers.1/attn/k_proj/MatMul" in nodes
    assert relative_rms(run(tmp_path / "out", TOKENS), tiny.logits(TOKENS)) < FLOAT_SUMS


@pytest.mark.parametrize("tied", [False, True])
def test_an_output_projection_in_mxfp4(tied: bool, tmp_path: Path) -> None:
    """Its own codes, even where config.json ties it to the embedding."""
    tiny = checkpoints.make(
        tmp_path / "checkpoint", "llama", "quark", quantize=lambda module: "embed" not in module
    )
    if tied:
        config = json.loads((tiny.folder / "config.json").read_text()) | {"tie_word_embeddings": True}
        (tiny.folder / "config.json").write_text(json.dumps(config))
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", library=False, **EXACT)
    assert "/lm_head/MatMul" in {site.node for site in report.kept}
    assert_bytes(tiny, tmp_path / "out")
    assert relative_rms(run(tmp_path / "out", TOKENS), tiny.logits(TOKENS)) < FLOAT_SUMS


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_in_mxfp4(tied: bool, tmp_path: Path) -> None:
    tiny = checkpoints.make(
        tmp_path / "checkpoint",
        "llama",
        "quark",
        quantize=lambda module: module != "lm_head",
        tie_word_embeddings=tied,
    )
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", library=False, **EXACT)
    kept = {site.node: site.op_type for site in report.kept}
    assert kept["/model/embed_tokens/Gather"] == "Gather"
    assert ("/lm_head/MatMul" in kept) == tied
    assert_bytes(tiny, tmp_path / "out")
    assert relative_rms(run(tmp_path / "out", TOKENS), tiny.logits(TOKENS)) < FLOAT_SUMS


def test_without_the_library_the_folder_runs_as_functions(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark")
    mxort.import_checkpoint(tiny.folder, tmp_path / "out", library=False, fuse=False, **EXACT)
    verify.check(ir.load(tmp_path / "out" / "model.onnx"))  # onnx.checker, but for onnxruntime's own norms
    got = run(tmp_path / "out", TOKENS, register=False)
    assert relative_rms(got, tiny.logits(TOKENS)) < FLOAT_SUMS


class Rounded(torch.nn.Module):
    """A linear whose operand is rounded to MXFP4: blocks of 32, scale rule "even", ties to even."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = x.double().reshape(*x.shape[:-1], -1, 32)
        largest = blocks.abs().amax(-1, keepdim=True)
        # The largest magnitude to one bit of mantissa, half up, has the exponent that the block gets.
        exponent = torch.floor(torch.log2(largest))
        exponent += (largest / 2**exponent >= 1.75).double()
        scale = 2 ** (exponent - 2)
        values = torch.tensor(checkpoints.E2M1[:8])
        ratio = (blocks / scale).abs().clamp(max=6)
        distance = (ratio[..., None] - values).abs()
        even = torch.arange(8) % 2  # of two codes at equal distance the even one
        code = (distance * 1e6 + even * 1e-3).argmin(-1)
        return self.linear((values[code] * blocks.sign() * scale).reshape(x.shape).float())


@pytest.mark.parametrize("fmt", ["quark-w4a4", "compressed-tensors-w4a4"])
def test_activations_are_rounded_as_the_checkpoint_asks(fmt: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", fmt)
    mxort.import_checkpoint(tiny.folder, tmp_path / "out", library=False, **EXACT)
    assert {attribute(node, "activation_format") for node, *_ in weights(tmp_path / "out").values()} == {
        b"mxfp4"
    }
    unrounded = tiny.logits(TOKENS)
    for name in tiny.packed:
        module, _, attribute_name = name.rpartition(".")
        parent = tiny.model.get_submodule(module)
        setattr(parent, attribute_name, Rounded(getattr(parent, attribute_name)))
    rounded = tiny.logits(TOKENS)
    # An operand that differs by a float rounding may fall to the other side of a tie now and then.
    assert relative_rms(run(tmp_path / "out", TOKENS), rounded) < 0.1 * relative_rms(unrounded, rounded)


def test_a_float_checkpoint_becomes_what_convert_makes(tmp_path: Path) -> None:
    """The builder's own float model, converted by the ordinary route, has the same bytes."""
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "float")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    folders = ["-i", tiny.folder, "-o", tmp_path / "built", "-c", tmp_path / "cache"]
    subprocess.run([*command, *folders], check=True, capture_output=True)
    mxort.convert(tmp_path / "built" / "model.onnx", tmp_path / "converted.onnx")
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", library=False)
    assert not report.kept
    assert len(report.quantized) == 2 * 5 + 2  # and the embedding and the output projection
    expected = onnx.load(tmp_path / "converted.onnx").graph
    got = onnx.load(tmp_path / "out" / "model.onnx").graph
    arrays = [
        {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for graph in (expected, got)
    ]
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        np.testing.assert_array_equal(arrays[1][name], array, name)


def test_the_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark")

    def fail(path: Path) -> None:
        assert (path.parent / "model.onnx").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staged_folder, "synchronise", fail)
    with pytest.raises(mxort.MxortError, match="cannot write: No space left on device"):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    assert report.conversion.output == str(tmp_path / "out" / "model.onnx")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "model.onnx",
        "genai_config.json",
        "tokenizer.json",
        "libmxort.so",
    }
    with pytest.raises(mxort.MxortError, match="the folder is not empty"):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")


@pytest.mark.parametrize("calibration", ["self", mxort.SelfWritten(8, 32)])
def test_there_is_no_model_that_could_write_yet(tmp_path: Path, calibration: Any) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "float")
    with pytest.raises(mxort.MxortError, match="calibration self: there is no model to write"):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out", calibration=calibration)


def test_what_the_model_needs_and_has_not(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark")
    path = tiny.folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(
        mxort.MxortError, match=r"has no tensor 'model\.layers\.2\..*', which the model needs"
    ):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    path.write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(mxort.MxortError, match=r"is MXFP4, but no weight of LlamaForCausalLM"):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    path.write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(mxort.MxortError, match=r"has the shape \[96, 64\], the model needs \[128, 64\]"):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    path.write_text(json.dumps(config | {"architectures": ["OlmoForCausalLM"]}))
    with pytest.raises(
        mxort.MxortError, match="OlmoForCausalLM: the model builder's graph computes something else"
    ):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    path.write_text(json.dumps(config))
    for file in tiny.folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(mxort.MxortError, match="the model builder cannot build LlamaForCausalLM"):
        mxort.import_checkpoint(tiny.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_NEEDED", ("torch", "no_such_library"))
    with pytest.raises(
        mxort.MxortError, match=r"import needs no_such_library: pip install 'mxort\[import\]'"
    ):
        mxort.import_checkpoint(tmp_path, tmp_path / "out")


def test_calibration_of_what_is_float(tmp_path: Path) -> None:
    """What an MXFP4 checkpoint left in floats is calibrated as by convert; its own codes stay what they are."""
    tiny = checkpoints.make(
        tmp_path / "checkpoint",
        "llama",
        "quark",
        quantize=lambda module: "layers." in module and "mlp" not in module,
    )
    rng = np.random.default_rng(1)
    data = [
        {
            "input_ids": rng.integers(3, checkpoints.VOCABULARY, (1, 64)),
            "attention_mask": np.ones((1, 64), np.int64),
        }
        for _ in range(8)
    ]
    report = mxort.import_checkpoint(tiny.folder, tmp_path / "out", calibration=data, table_format="float")
    assert_bytes(tiny, tmp_path / "out")
    gains = {site.node: site.gain_db for site in report.conversion.converted}
    assert {node for node, gain in gains.items() if gain} == {site.node for site in report.quantized}
    assert len(report.quantized) == 2 * 3
    mxort.import_checkpoint(tiny.folder, tmp_path / "plain", table_format="float")
    expected = tiny.logits(TOKENS)
    errors = [relative_rms(run(tmp_path / name, TOKENS), expected) for name in ("out", "plain")]
    assert 0 < errors[0] < errors[1]


def test_no_smoothing_where_codes_are_kept(tmp_path: Path) -> None:
    """A division that goes into a norm would need the codes behind it changed."""
    tiny = checkpoints.make(
        tmp_path / "checkpoint", "llama", "quark", quantize=lambda module: "up_proj" in module
    )
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, checkpoints.VOCABULARY, (8, 64))
    data = [{"input_ids": row[None], "attention_mask": np.ones((1, 64), np.int64)} for row in tokens]
    report = mxort.import_checkpoint(
        tiny.folder, tmp_path / "out", calibration=data, algorithm="smoothquant", smooth_alpha="0.5", **EXACT
    )
    notes = {site.node: site.note for site in report.conversion.converted}
    for layer in "01":
        assert "smoothed with alpha" in notes[f"/model/layers.{layer}/attn/qkv_proj/MatMul"]
        assert "not smoothed: codes of the checkpoint" in notes[f"/model/layers.{layer}/mlp/gate_proj/MatMul"]
    assert_bytes(tiny, tmp_path / "out")


def test_python_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark")
    for name in ("evil", "configuration_evil", "tokenization_evil"):
        (tiny.folder / f"{name}.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    evil = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    for name, change in (
        ("config.json", {"auto_map": evil}),
        ("config.json", {"auto_map": evil, "model_type": "evil"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}),
    ):
        path = tiny.folder / name
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | change))
        with contextlib.suppress(mxort.MxortError):
            mxort.import_checkpoint(
                tiny.folder, tmp_path / f"out{len(list(tmp_path.iterdir()))}", library=False
            )
        path.write_text(before)
    assert not (tmp_path / "was_run").exists()
    assert not list(tmp_path.glob("out*/*.py"))
