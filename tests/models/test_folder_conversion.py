"""Folders of optimum and sentence-transformers, and what is refused of any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import mxort
from command import run
from model_folders import config, genai_folder, optimum_folder
from mxort.cli import main
from mxort.errors import MxortError
from mxort.models import conversion
from tiny_models import mlp


def state(folder):
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("nested", [True, False])
def test_the_layout_stays(tmp_path, nested):
    source = optimum_folder(tmp_path / "in", nested=nested)
    report = mxort.convert_folder(source, tmp_path / "out")
    assert names(tmp_path / "out") == names(source)
    below = "onnx/" if nested else ""
    converted, other = report.models
    assert (converted.path, converted.converted) == (f"{below}model.onnx", True)
    assert (other.path, other.reason) == (f"{below}model_quantized.onnx", "another form of model.onnx")
    assert mxort.inspect(tmp_path / "out" / converted.path).converted
    for name in names(source) - {converted.path}:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert report.original_bytes == (source / converted.path).stat().st_size
    assert report.converted_bytes == (tmp_path / "out" / converted.path).stat().st_size
    assert converted.report.output == str(tmp_path / "out" / converted.path)
    assert report.warnings == ()


def test_parts_of_one_whole_are_all_converted(tmp_path):
    source = optimum_folder(tmp_path / "in", nested=False)
    for name in (
        "decoder_model",
        "decoder_model_merged",
        "decoder_with_past_model",
        "decoder_model_merged_q4",
    ):
        mlp(source / f"{name}.onnx")
    report = mxort.convert_folder(source, tmp_path / "out")
    assert [model.path for model in report.models if not model.converted] == [
        "decoder_model_merged_q4.onnx",
        "model_quantized.onnx",
    ]


def test_the_command(tmp_path):
    source = optimum_folder(tmp_path / "in")
    flags = ["--report", "report.txt", "--report", "report.html", "--report", "report.json"]
    done = run("convert", "in", "-o", "out", "--json", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    printed = json.loads(done.stdout)
    assert printed["kind"] == "transformers"
    assert [model["path"] for model in printed["models"]] == ["onnx/model.onnx", "onnx/model_quantized.onnx"]
    assert len(printed["models"][0]["report"]["sites"]) == 2
    assert json.loads((tmp_path / "report.json").read_text()) == printed
    assert "fc1" in (tmp_path / "report.html").read_text()
    text = (tmp_path / "report.txt").read_text()
    assert "another form of model.onnx" in text
    assert "1 of 2 models converted" in text

    shown = run("inspect", "out", "--json", cwd=tmp_path)
    assert [model["converted"] for model in json.loads(shown.stdout)["models"]] == [True]
    before = state(tmp_path)
    dry = run("convert", "in", "-o", "new", "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "2 nodes can be" in dry.stdout
    assert "model_quantized.onnx: left alone" in dry.stdout
    assert state(tmp_path) == before

    assert run("convert", "in", cwd=tmp_path).returncode == 0  # beside it, by default
    assert names(tmp_path / "in.mxfp4") == names(source)


def test_nothing_to_convert_has_a_status(tmp_path):
    optimum_folder(tmp_path / "in")
    done = run("convert", "in", "-o", "out", "--exclude", "*", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr == "mxort: warning: onnx/model.onnx: nothing was converted\n"
    assert names(tmp_path / "out") == names(tmp_path / "in")


def test_a_folder_without_a_tokenizer_is_converted_with_a_warning(tmp_path):
    source = optimum_folder(tmp_path / "in")
    (source / "tokenizer.json").unlink()
    (warning,) = mxort.convert_folder(source, tmp_path / "out").warnings
    assert "no tokenizer in it" in warning


def test_an_empty_target_is_filled_and_another_replaced(tmp_path):
    source = optimum_folder(tmp_path / "in")
    (tmp_path / "out").mkdir()
    mxort.convert_folder(source, tmp_path / "out")
    (tmp_path / "out" / "old.txt").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    mxort.convert_folder(source, tmp_path / "link", overwrite=True)
    assert names(tmp_path / "out") == names(source)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "link"}


def test_calibration_of_the_one_model(tmp_path):
    import numpy as np

    source = optimum_folder(tmp_path / "in")
    data = {"x": np.random.default_rng(1).standard_normal((64, 64), np.float32)}
    report = mxort.convert_folder(source, tmp_path / "out", calibration=[data])
    assert {site.algorithm for site in report.models[0].report.converted} == {"mr-gptq"}


def broken_genai(folder, text):
    genai_folder(folder)
    (folder / "genai_config.json").write_text(text)


def missing_part(folder):
    with_vision = config()
    with_vision["model"]["vision"] = {"filename": "vision.onnx"}
    broken_genai(folder, json.dumps(with_vision))


def outside_part(folder):
    outside = config()
    outside["model"]["decoder"]["filename"] = "../model.onnx"
    broken_genai(folder, json.dumps(outside))


def other_library(folder):
    other = config()
    other["model"]["decoder"]["session_options"]["custom_ops_library"] = "libother.so"
    broken_genai(folder, json.dumps(other))


def two_models(folder):
    mlp(optimum_folder(folder) / "encoder.onnx")


def no_config(folder):
    folder.mkdir()
    mlp(folder / "model.onnx")


def no_onnx(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def converted(folder):
    optimum_folder(folder)
    mlp(folder / "one.onnx")
    mxort.convert(folder / "one.onnx", folder / "two.onnx")


def old(folder):
    import onnx

    source = optimum_folder(folder) / "onnx" / "model.onnx"
    model = onnx.load(source)
    model.opset_import[0].version = 7
    onnx.save(model, source)


def truncated(folder):
    source = optimum_folder(folder) / "onnx" / "model.onnx"
    os.truncate(source, source.stat().st_size // 2)


def loop(folder):
    (optimum_folder(folder) / "again").symlink_to(folder)


def broken_link(folder):
    (optimum_folder(folder) / "gone.txt").symlink_to(folder / "absent")


BAD_INPUT = {
    "no configuration": (no_config, [], "expected one of genai_config.json, config.json, modules.json"),
    "no ONNX": (no_onnx, [], "no ONNX file"),
    "no JSON": (lambda folder: broken_genai(folder, "{"), [], "genai_config.json: not JSON"),
    "no model in it": (lambda folder: broken_genai(folder, "[]"), [], 'expected an object with a "model"'),
    "a model is missing": (missing_part, [], "names vision.onnx (vision): no such file"),
    "a model elsewhere": (outside_part, [], "decoder is '../model.onnx', expected a file in the folder"),
    "another library": (other_library, [], "'libother.so'"),
    "converted already": (converted, [], "two.onnx: is converted already"),
    "converted, dry run": (converted, ["--dry-run"], "two.onnx: is converted already"),
    "too old": (old, [], "opset"),
    "truncated": (truncated, [], "model.onnx: not an ONNX model"),
    "a loop of links": (loop, [], "links to a folder that it is in"),
    "a broken link": (broken_link, [], "gone.txt"),
    "output inside": (optimum_folder, ["-o", "in/out"], "one inside the other"),
    "output around": (optimum_folder, ["-o", "."], "one inside the other"),
    "output is input": (optimum_folder, ["-o", "in", "--overwrite"], "one inside the other"),
    "output is a file": (optimum_folder, ["-o", "file"], "is no folder"),
    "no such parent": (optimum_folder, ["-o", "absent/out"], "does not exist"),
    "not empty": (optimum_folder, ["-o", "full"], "--overwrite replaces it"),
    "not of models": (optimum_folder, ["-o", "full", "--overwrite"], "folders of models only"),
    "unwritable": (optimum_folder, ["-o", "/proc/out"], "/proc/out"),
    "several models and data": (two_models, ["--calibration", "data.npz"], "2 are to be converted"),
    "several models and a budget": (
        two_models,
        ["--calibration", "data.npz", "--budget-bits", "5"],
        "2 are to be converted",
    ),
    "a report that is replaced": (optimum_folder, ["-o", "empty", "--report", "empty/r.txt"], "empty/r.txt"),
    "a file is no folder": (
        lambda folder: mlp(folder.with_name("in")),
        ["--overwrite"],
        "--overwrite: would change nothing",
    ),
    "unknown preset": (optimum_folder, ["--preset", "w4a7"], "w4a7"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(case, tmp_path, monkeypatch, capsys):
    make, flags, named = BAD_INPUT[case]
    make(tmp_path / "in")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    (tmp_path / "empty").mkdir()
    before = state(tmp_path)
    target = [] if "-o" in flags else ["-o", "out"]
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "in", *target, *flags]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("mxort: error: ")
    assert error.count("\n") == 1, error
    assert named in error
    assert state(tmp_path) == before


def test_full_disk(tmp_path):
    """A file size limit stands in for it: it fails in the middle, after a model was written."""
    mlp(optimum_folder(tmp_path / "in") / "onnx" / "first.onnx")
    (tmp_path / "in" / "large.bin").write_bytes(bytes(200_000))
    before = state(tmp_path)
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    code += "from mxort.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-B", "-c", code, "convert", "in", "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "mxort: error: out: cannot write: File too large\n"
    assert state(tmp_path) == before


def test_what_fails_later_leaves_the_old_folder(tmp_path, monkeypatch):
    source = optimum_folder(tmp_path / "in")
    mxort.convert_folder(source, tmp_path / "out")
    before = state(tmp_path / "out")

    def fail(*_):
        raise MxortError("no more")

    monkeypatch.setattr(conversion, "_copy_rest", fail)
    with pytest.raises(MxortError, match="no more"):
        mxort.convert_folder(source, tmp_path / "out", overwrite=True)
    assert state(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
