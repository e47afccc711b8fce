"""``mxort import`` as users meet it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import checkpoints
import command
import ggufs


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return command.run("import", *arguments)


def test_a_checkpoint_becomes_a_folder(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "qwen2", "quark-w4a4", shards=2)
    done = run(tiny.folder, "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("Qwen2ForCausalLM, AMD Quark: ") for line in lines)
    assert any(
        line.startswith("10 weights kept as the checkpoint has them, byte for byte: ") for line in lines
    )
    assert "activations before them rounded to mxfp4" in lines
    assert any(line.startswith("2 weights converted from float: mxint8 (") for line in lines)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "genai_config.json", "tokenizer.json", "libmxort.so"} <= written
    assert not any(name.startswith(".") for name in written)

    done = run(tiny.folder, "-o", tmp_path / "json", "--json", "--no-library", "--table-format", "float")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["format"], report["architecture"]) == ("AMD Quark", "Qwen2ForCausalLM")
    assert len(report["kept"]) == 10
    assert report["quantized"] == []
    assert report["conversion"]["recipe"]["table_format"] == "float"
    assert not (tmp_path / "json" / "libmxort.so").exists()
    session = json.loads((tmp_path / "json" / "genai_config.json").read_text())["model"]["decoder"]
    assert "custom_ops_library" not in session["session_options"]


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        ("no folder", "absent: expected a folder"),
        ("empty folder", "config.json: cannot read"),
        ("damaged weights", "model.safetensors: not a safetensors file, or damaged"),
        ("unknown format", "config.json: quant_method: got 'awq'"),
        ("unknown option", "unknown rotation: got '48'"),
        ("existing output", "out: the folder is not empty"),
        ("no such parent", "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(break_it: str, named: str, tmp_path: Path) -> None:
    source, out, extra = tmp_path / "checkpoint", tmp_path / "out", []
    if break_it == "no folder":
        source = tmp_path / "absent"
    elif break_it == "empty folder":
        source.mkdir()
    else:
        override = {"quant_method": "awq"} if break_it == "unknown format" else {}
        checkpoints.make(source, "llama", "quark", quantization=override)
    if break_it == "damaged weights":
        os.truncate(source / "model.safetensors", 100)
    elif break_it == "unknown option":
        extra = ["--rotation", "48"]
    elif break_it == "existing output":
        out.mkdir()
        (out / "file").touch()
    elif break_it == "no such parent":
        out = tmp_path / "absent" / "out"
    before = sorted(tmp_path.rglob("*"))
    done = run(source, "-o", out, *extra)
    assert done.returncode == 2
    assert done.stderr.startswith("mxort: error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_what_an_import_should_hear_about(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "modelopt")
    done = run(tiny.folder, "-o", tmp_path / "out")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "mxort: warning: quant_algo mxfp4 does not say whether activations are rounded"
    )


def test_a_gguf_becomes_a_folder(tmp_path: Path) -> None:
    ggufs.make(tmp_path / "tiny.gguf", "llama", "Q8_0", quantize=lambda module: "mlp" in module)
    done = run(tmp_path / "tiny.gguf", "-o", tmp_path / "out")
    assert done.returncode == 0
    told = "mxort: warning: 6 tensors in Q8_0: dequantised, then taken as float weights\n"
    assert done.stderr == told
    assert "LlamaForCausalLM: " in done.stdout
    assert {"model.onnx", "genai_config.json", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    done = run(tmp_path / "absent.gguf", "-o", tmp_path / "other")
    assert done.returncode == 2
    assert done.stderr == (
        f"mxort: error: {tmp_path / 'absent.gguf'}: not a GGUF file, or damaged: "
        f"[Errno 2] No such file or directory: '{tmp_path / 'absent.gguf'}'\n"
    )
