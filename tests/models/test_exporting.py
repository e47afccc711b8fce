"""The way back: bytes of a checkpoint after import and export, and what the formats' own readers make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open

import checkpoints
import expert_tensors
import ggufs
import mxort
from imported import last_logits, packed_rows, relative_rms, run
from mxort.models import formats, shard_writer
from mxort.models.checkpoint import open_checkpoint

TOKENS = np.random.default_rng(3).integers(3, checkpoints.VOCABULARY, (1, 12))
EXACT: dict[str, Any] = {"table_format": "float", "accuracy_level": 1}
FLOAT_SUMS = 2e-5
"""As in test_importing.py."""

FORMS = ("quark", "compressed-tensors")
"""Those of matrices; gpt-oss' is of stacks."""


def contents(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """(type, shape, bytes) of every tensor of a checkpoint, read by safetensors."""
    found = {}
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                tensor = opened.get_tensor(name)
                raw = tensor.contiguous().view(-1).view(dtype=torch.uint8)
                found[name] = str(tensor.dtype), tuple(tensor.shape), raw.numpy().tobytes()
    return found


DENSE = ("llama", "qwen2", "qwen3", "phi3", "gemma3_text", "lfm2")
THERE_AND_BACK = [
    *((a, f) for a in DENSE for f in (*FORMS, "quark-w4a4", "compressed-tensors-w4a4")),
    *((a, f) for a in expert_tensors.PARTS for f in (*FORMS, "quark-w4a4")),
    ("gpt_oss", "gpt-oss"),
]


@pytest.mark.parametrize(("architecture", "fmt"), THERE_AND_BACK)
def test_there_and_back_is_the_checkpoint(architecture: str, fmt: str, tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, fmt, shards=2)
    kept = {**EXACT, "exclude": ("*",)}  # what is MXFP4 already is kept all the same
    mxort.import_checkpoint(tiny.folder, tmp_path / "folder", library=False, **kept)
    to = "mxfp4" if fmt == "gpt-oss" else fmt.removesuffix("-w4a4")
    report = mxort.export(tmp_path / "folder", tmp_path / "back", to)
    before, after = contents(tiny.folder), contents(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in before)
    assert report.packed == len(tiny.packed)
    assert report.packed * 2 + report.floats == len(before)
    first, second = open_checkpoint(tiny.folder), open_checkpoint(tmp_path / "back")
    assert {n: p.activation_format for n, p in first.packed.items()} == {
        n: p.activation_format for n, p in second.packed.items()
    }
    changed = {"quantization_config"}
    assert {k: v for k, v in first.config.items() if k not in changed} == {
        k: v for k, v in second.config.items() if k not in changed
    }
    tokenizers = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("folder", "back")]
    assert tokenizers[0] == tokenizers[1]
    mxort.import_checkpoint(tmp_path / "back", tmp_path / "again", library=False, **kept)
    once, twice = packed_rows(tmp_path / "folder"), packed_rows(tmp_path / "again")
    assert once.keys() == twice.keys()
    for name in once:
        for part in range(2):
            np.testing.assert_array_equal(once[name][part], twice[name][part])


@pytest.mark.parametrize("architecture", ["gpt_oss", *expert_tensors.PARTS])
@pytest.mark.parametrize("to", [*FORMS, "mxfp4"])
def test_float_experts_calibrated_here_serve_there(to: str, architecture: str, tmp_path: Path) -> None:
    """The recipe's own codes under the checkpoint's names; what is left in floats has its bytes and shapes."""
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "float")
    stacks = to == "mxfp4"
    recipe = {"exclude": ("*proj*", "*head*", "*router*")} if stacks else {"exclude": ("*router*",)}
    mxort.import_checkpoint(
        tiny.folder,
        tmp_path / "folder",
        "portable",
        calibration=samples(2),
        library=False,
        accuracy_level=1,
        **recipe,
    )
    if stacks != (architecture == "gpt_oss"):
        named = "a matrix in MXFP4, which mxfp4" if stacks else "a stack of experts, which"
        with pytest.raises(mxort.MxortError, match=rf"tensor '.*experts.*' is {named}") as caught:
            mxort.export(tmp_path / "folder", tmp_path / "back", to)
        assert "\n" not in str(caught.value)
        return
    mxort.export(tmp_path / "folder", tmp_path / "back", to)
    before, after = contents(tiny.folder), contents(tmp_path / "back")
    packed = open_checkpoint(tmp_path / "back").packed
    kept = before.keys() - packed.keys()
    assert len(kept) > 6
    assert all(before[name] == after[name] for name in kept)
    assert len([name for name in packed if ".experts." in name]) == (4 if stacks else 2 * 4 * 3)
    mxort.import_checkpoint(tmp_path / "back", tmp_path / "again", library=False, exclude=("*",), **EXACT)
    once, twice = last_logits(tmp_path / "folder", TOKENS), last_logits(tmp_path / "again", TOKENS)
    assert relative_rms(twice, once) < FLOAT_SUMS


@pytest.mark.parametrize("architecture", ["gpt_oss", *expert_tensors.PARTS])
def test_experts_that_stay_float(architecture: str, tmp_path: Path) -> None:
    """Beside packed linears: in the shapes and the order of rows that the checkpoint has."""
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, "float")
    mxort.import_checkpoint(
        tiny.folder,
        tmp_path / "folder",
        exclude=("*moe*",),
        library=False,
        rotation=1,
        column_multiplier=False,
        **EXACT,
    )
    mxort.export(tmp_path / "folder", tmp_path / "back", "quark")
    before, after = contents(tiny.folder), contents(tmp_path / "back")
    experts = [name for name in before if ".experts." in name]
    assert experts
    assert all(before[name] == after[name] for name in experts)


@pytest.mark.parametrize(
    ("architecture", "to"),
    [
        *(("llama", form) for form in FORMS),
        ("mixtral", "quark"),
        ("qwen3_moe", "compressed-tensors"),
        ("gpt_oss", "mxfp4"),
    ],
)
def test_from_one_format_to_another(architecture: str, to: str, tmp_path: Path) -> None:
    """A GGUF, llama.cpp's order of rows undone, for vLLM."""
    tiny = ggufs.make(tmp_path / "tiny.gguf", architecture)
    kept = {**EXACT, "exclude": ("*",)}
    mxort.import_checkpoint(tmp_path / "tiny.gguf", tmp_path / "folder", library=False, **kept)
    mxort.export(tmp_path / "folder", tmp_path / "back", to)
    opened = open_checkpoint(tmp_path / "back")
    stacks = to == "mxfp4"
    assert opened.packed.keys() == {name if stacks else f"{name}.weight" for name in tiny.packed}
    for name, packed in opened.packed.items():
        matrix = tiny.packed[name.removesuffix(".weight")]
        np.testing.assert_array_equal(packed.codes.array().reshape(matrix.bytes.shape), matrix.bytes)
        np.testing.assert_array_equal(packed.scales.array(), matrix.scales)
    state = tiny.model.state_dict()
    for name, tensor in opened.floats.items():
        expected = state[name.replace("block_sparse_moe", "mlp")].numpy()
        np.testing.assert_array_equal(np.asarray(tensor.array(), np.float32), expected, name)
    mxort.import_checkpoint(tmp_path / "back", tmp_path / "again", library=False, **kept)
    assert relative_rms(last_logits(tmp_path / "again", TOKENS), tiny.logits(TOKENS)[0, -1]) < FLOAT_SUMS


def samples(count: int = 8) -> list[dict[str, np.ndarray]]:
    tokens = np.random.default_rng(1).integers(3, checkpoints.VOCABULARY, (count, 64))
    return [{"input_ids": row[None], "attention_mask": np.ones((1, 64), np.int64)} for row in tokens]


def test_a_float_checkpoint_calibrated_here_serves_there(tmp_path: Path) -> None:
    """The preset portable: nothing in it that the formats cannot say."""
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "float")
    report = mxort.import_checkpoint(
        tiny.folder, tmp_path / "folder", "portable", calibration=samples(), library=False, accuracy_level=1
    )
    assert len(report.quantized) == 2 * 5
    assert all(site.gain_db and site.gain_db > 0 for site in report.quantized)
    assert all(site.rotation == 1 for site in report.quantized)
    for to in FORMS:
        mxort.export(tmp_path / "folder", tmp_path / to, to)
        before, after = contents(tiny.folder), contents(tmp_path / to)
        kept = [name for name in after if "layers" not in name or "norm" in name]
        assert len(kept) == 3 + 2 * 2
        assert all(before[name] == after[name] for name in kept)
        mxort.import_checkpoint(tmp_path / to, tmp_path / f"{to}-again", library=False, **EXACT)
        once, twice = run(tmp_path / "folder", TOKENS), run(tmp_path / f"{to}-again", TOKENS)
        assert relative_rms(twice, once) < FLOAT_SUMS
    assert 0 < relative_rms(once, tiny.logits(TOKENS)) < 1


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "multipliers": ("float", {"column_multiplier": True}, r"has a column_scale that is not 1"),
    "a rotation": ("float", {"column_multiplier": False, "rotation": 32}, r"has rotation 32, expected 1"),
    "a table in MXINT8": (
        "quark",
        {"table_format": "mxint8"},
        r"node '/model/embed_tokens/Gather' has weights in mxint8, expected mxfp4",
    ),
    "another weight format": (
        "float",
        {"weight_format": "mxfp8_e4m3"},
        r"has weights in mxfp8_e4m3, expected mxfp4",
    ),
    "activations in MXFP6": (
        "float",
        {"column_multiplier": False, "activation_format": "mxfp6_e2m3"},
        r"activation_format mxfp6_e2m3: compressed-tensors has none, mxfp4, mxfp8_e4m3",
    ),
    "an embedding": (
        "float",
        {"column_multiplier": False, "table_format": "mxfp4"},
        r"tensor 'model\.embed_tokens\.weight' is an embedding in MXFP4",
    ),
    "nothing packed": ("float", {"exclude": ("*",)}, r"is not converted"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_format_cannot_say(what: str, tmp_path: Path) -> None:
    fmt, options, named = REFUSED[what]
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", fmt)
    mxort.import_checkpoint(
        tiny.folder, tmp_path / "folder", library=False, **{"table_format": "float", **options}
    )
    with pytest.raises(mxort.MxortError, match=named) as caught:
        mxort.export(tmp_path / "folder", tmp_path / "out", "compressed-tensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_smoothing_changes_what_is_no_weight(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "float")
    mxort.import_checkpoint(
        tiny.folder,
        tmp_path / "folder",
        library=False,
        calibration=samples(),
        algorithm="smoothquant",
        column_multiplier=False,
        **EXACT,
    )
    with pytest.raises(mxort.MxortError, match="algorithm smoothquant has changed norms"):
        mxort.export(tmp_path / "folder", tmp_path / "out", "quark")


def test_a_model_that_no_import_wrote(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark")
    mxort.import_checkpoint(tiny.folder, tmp_path / "folder", library=False, **EXACT)
    (tmp_path / "folder" / "checkpoint.safetensors").unlink()
    with pytest.raises(mxort.MxortError, match=r"has no checkpoint\.safetensors, expected a folder that"):
        mxort.export(tmp_path / "folder", tmp_path / "out", "quark")
    with pytest.raises(mxort.MxortError, match=r"expected a folder that `mxort import` wrote"):
        mxort.export(tmp_path / "folder" / "model.onnx", tmp_path / "out", "quark")
    with pytest.raises(mxort.MxortError, match=r"unknown format: got 'gguf', expected one of "):
        mxort.export(tmp_path / "folder", tmp_path / "out", "gguf")
    with pytest.raises(mxort.MxortError, match=r"no such file or folder"):
        mxort.export(tmp_path / "absent", tmp_path / "out", "quark")


def test_damaged_names(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark")
    mxort.import_checkpoint(tiny.folder, tmp_path / "folder", library=False, **EXACT)
    path = tmp_path / "folder" / "model.onnx"
    good = onnx.load(path, load_external_data=False)
    for key, value, named in (
        ("mxort.checkpoint_rows", "[1]", "names of tensors are damaged|names 1"),
        ("mxort.checkpoint_rows", "{", "names of tensors are damaged"),
        ("mxort.checkpoint", '["a[5:x]"]', "damaged|lacks rows|has .* rows"),
        ("mxort.checkpoint", "7", "names of tensors are damaged"),
    ):
        model = onnx.ModelProto()
        model.CopyFrom(good)
        node = next(n for n in model.graph.node if n.op_type == "MatMulMXFP4")
        entry = next(e for e in node.metadata_props if e.key == key)
        entry.value = value
        path.write_bytes(model.SerializeToString())
        with pytest.raises(mxort.MxortError, match=named):
            mxort.export(tmp_path / "folder", tmp_path / "out", "quark")


def test_files_of_a_large_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arrays = {f"t{i}": rng.standard_normal((10 + i, 7)).astype(np.float32) for i in range(5)}
    tensors = {n: shard_writer.NewTensor("F32", a.shape, [a[:3], a[3:]]) for n, a in arrays.items()}
    shard_writer.write(tmp_path, tensors, shard_bytes=700)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    (tmp_path / "config.json").write_text("{}")
    opened = open_checkpoint(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.floats[name].array(), array)


def test_every_target_is_a_row() -> None:
    assert set(formats.EXPORTS) == {*FORMS, "mxfp4"}
