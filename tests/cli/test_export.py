"""``mxort export`` as users meet it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import checkpoints
import command
import mxort


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return command.run("export", *arguments)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    tiny = checkpoints.make(folder / "checkpoint", "llama", "quark")
    mxort.import_checkpoint(tiny.folder, folder / "out", library=False, table_format="float")
    return folder / "out"


def test_a_folder_becomes_a_checkpoint(imported: Path, tmp_path: Path) -> None:
    done = run(imported, "--to", "compressed-tensors", "-o", tmp_path / "back")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("compressed-tensors: 14 packed weights, 7 tensors in float, ")
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "mxfp4-pack-quantized"
    assert config["quantization_config"]["ignore"] == ["lm_head"]


def test_a_folder_becomes_standard_onnx(imported: Path, tmp_path: Path) -> None:
    done = run(imported, "--to", "standard", "-o", tmp_path / "standard.onnx", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["target"], report["packed"], report["floats"]) == ("standard", 10, 0)
    assert report["nbytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_bad_input_is_one_line_and_leaves_nothing(imported: Path, tmp_path: Path) -> None:
    for arguments, named in (
        ((tmp_path / "absent", "--to", "quark", "-o", tmp_path / "out"), "absent: cannot read: no such file"),
        ((imported, "--to", "awq", "-o", tmp_path / "out"), "unknown format: got 'awq', expected one of"),
        ((imported, "--to", "quark", "-o", imported), "would be one inside the other"),
        ((imported, "--to", "quark", "-o", tmp_path / "a" / "b"), "does not exist"),
        ((imported, "--to", "standard", "-o", imported / "model.onnx"), "would overwrite the input"),
        ((imported, "--to", "quark"), "the following arguments are required: -o/--output"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("mxort: error: ")
        assert done.stderr.count("\n") == 1
        assert named in done.stderr
        assert not list(tmp_path.iterdir())
