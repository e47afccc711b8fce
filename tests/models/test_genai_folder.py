"""Folders of onnxruntime-genai: what comes out runs there, by its own means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import mxort
from model_folders import config, genai_folder, pipeline_folder
from mxort.cli import main
from mxort.errors import MxortError
from mxort.models import genai_config
from sliding_window import HEAD, HEADS

PROMPT = [3, 5, 7]

GENERATE = """
import json, sys
import numpy as np, onnxruntime_genai as og
folder, prompt, profile = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
config = og.Config(folder)
if profile:
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"enable_profiling": profile}}}}))
model = og.Model(config)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(prompt) + 4)
generator = og.Generator(model, parameters)
generator.append_tokens(np.array([prompt], np.int32))
logits = generator.get_logits()[0, -1].tolist()
while not generator.is_done():
    generator.generate_next_token()
assert "mxort" not in sys.modules
print(json.dumps([logits, generator.get_sequence(0).tolist()]))
"""


def generate(folder, cwd, profile=""):
    """A process that knows onnxruntime-genai only -> (float [vocabulary] logits behind the prompt, all tokens)."""
    command = [sys.executable, "-c", GENERATE, folder, json.dumps(PROMPT), profile]
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"} | {
        "ORT_DISABLE_TELEMETRY": "1"
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    logits, tokens = json.loads(done.stdout)
    return np.array(logits), tokens


def operators(folder):
    """What the sessions ran whose profiles are in ``folder``."""
    profiles = [json.loads(path.read_text()) for path in folder.glob("profile*.json")]
    assert profiles
    nodes = (event for events in profiles for event in events if event.get("cat") == "Node")
    return {node["args"].get("op_name") for node in nodes}


@pytest.fixture
def source(tmp_path):
    return genai_folder(tmp_path / "in")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_folder_runs_in_genai_without_code(source, tmp_path):
    report = mxort.convert_folder(source, tmp_path / "out")
    (model,) = report.models
    assert (model.path, model.part, model.reason) == ("model.onnx", "decoder", "")
    assert len(model.report.converted) == 6
    (tmp_path / "elsewhere").mkdir()
    logits, tokens = generate(tmp_path / "out", tmp_path / "elsewhere", "profile")

    # The same file in an onnxruntime that has not heard of the library: its functions, as float.
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx")
    ids = np.array([PROMPT], np.int64)
    empty = np.zeros((1, HEADS, 0, HEAD), np.float32)
    cache = {f"past_key_values.0.{what}": empty for what in ("key", "value")}
    expected = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)} | cache)[0][
        0, -1
    ]
    # Six products of int8 class, each within 1e-2 of the exact one.
    assert np.linalg.norm(logits - expected) < 6e-2 * np.linalg.norm(expected)
    assert tokens[: len(PROMPT) + 1] == [*PROMPT, expected.argmax()]

    ran = operators(tmp_path / "elsewhere")
    assert {"MatMulMXFP4", "MatMulMXINT8", "GatherMXINT8"} <= ran
    assert "MatMul" not in ran


@pytest.mark.parametrize(("cache", "nbytes"), [("mxfp8", 33), ("mxfp4", 17)])
def test_a_quantised_cache_runs_in_genai_without_code(tmp_path, cache, nbytes):
    """genai makes the caches: of the type that the model has, and of the size that its configuration names."""
    source = genai_folder(tmp_path / "in", rotary=True)
    report = mxort.convert_folder(source, tmp_path / "out", kv_cache=cache)
    assert report.models[0].report.cache_bytes == nbytes
    written = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert written["model"]["decoder"]["head_size"] == nbytes
    mxort.convert_folder(source, tmp_path / "float")
    logits, tokens = generate(tmp_path / "out", tmp_path)
    expected, _ = generate(tmp_path / "float", tmp_path)
    # Keys and values are rounded by at most half a step, an eighth or a half; three positions of the mean.
    assert (
        0 < np.linalg.norm(logits - expected) < (0.1 if cache == "mxfp8" else 0.4) * np.linalg.norm(expected)
    )
    assert len(tokens) == len(PROMPT) + 4


def test_without_the_library_genai_fails_and_names_it(source, tmp_path):
    mxort.convert_folder(source, tmp_path / "out")
    (tmp_path / "out" / "libmxort.so").unlink()
    with pytest.raises(RuntimeError, match=r"Failed to load library libmxort\.so"):
        generate(tmp_path / "out", tmp_path)


def test_what_is_in_the_folder(source, tmp_path):
    (source / ".hidden").write_text("")
    (source / "linked.txt").symlink_to(source / "tokenizer.json")
    report = mxort.convert_folder(source, tmp_path / "out")
    (data,) = (tmp_path / "out").glob("model.onnx.*.data")
    assert files(tmp_path / "out") == {
        "genai_config.json",
        "libmxort.so",
        "linked.txt",
        "model.onnx",
        "more/notes.txt",
        "tokenizer.json",
        data.name,
    }
    assert not (tmp_path / "out" / "linked.txt").is_symlink()
    assert (tmp_path / "out" / "more" / "notes.txt").read_text() == "kept\n"
    expected = config()
    expected["model"]["decoder"]["session_options"]["custom_ops_library"] = "libmxort.so"
    assert json.loads((tmp_path / "out" / "genai_config.json").read_text()) == expected
    assert (tmp_path / "out" / "libmxort.so").read_bytes() == Path(mxort.get_library_path()).read_bytes()
    assert report.copied_files == 5  # two of text, notes, the configuration, the library
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_each_model_that_the_configuration_names(source, tmp_path):
    """An embedding in a folder, a stage of a pipeline, and one whose weights are shared; one is not named."""
    genai_folder(tmp_path / "other", external=False)
    for name in ("parts/embedding.onnx", "stage.onnx", "heir.onnx", "shared.onnx", "unnamed.onnx"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes((tmp_path / "other" / "model.onnx").read_bytes())
    named = config()
    named["model"]["embedding"] = {"filename": "parts/embedding.onnx", "session_options": {"log_id": "e"}}
    named["model"]["vision"] = {"filename": "", "config_filename": "vision.json"}
    heir = {"filename": "heir.onnx", "session_options": {"log_id": "h"}, "inherit_session_options": True}
    named["model"]["decoder"]["pipeline"] = [
        {"first": {"filename": "stage.onnx", "inputs": ["x"]}, "heir": heir}
    ]
    named["model"]["mtp"] = {"filename": "shared.onnx", "shared_initializers": [{"name": "w"}]}
    (source / "genai_config.json").write_text(json.dumps(named))
    report = mxort.convert_folder(source, tmp_path / "out")
    assert [(model.path, model.part, model.converted) for model in report.models] == [
        ("model.onnx", "decoder", True),
        ("stage.onnx", "decoder.pipeline.first", True),
        ("heir.onnx", "decoder.pipeline.heir", True),
        ("parts/embedding.onnx", "embedding", True),
        ("shared.onnx", "mtp", False),
        ("unnamed.onnx", "", False),
    ]
    assert "shared_initializers" in report.models[4].reason
    assert "does not name it" in report.models[5].reason
    for name in ("shared.onnx", "unnamed.onnx"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    for name in ("model.onnx", "stage.onnx", "parts/embedding.onnx"):
        assert mxort.inspect(tmp_path / "out" / name).converted
    out = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    options = {"custom_ops_library": "libmxort.so"}
    assert out["embedding"]["session_options"] == {"log_id": "e"} | options
    assert out["decoder"]["session_options"]["custom_ops_library"] == "libmxort.so"
    assert "session_options" not in out["decoder"]["pipeline"][0]["first"]  # it gets the decoder's
    assert out["decoder"]["pipeline"][0]["heir"]["session_options"] == {
        "log_id": "h"
    }  # and inherits the rest


def test_a_pipeline_runs_in_genai(tmp_path):
    """Three models in turn: all get the library by the decoder's options, and the embedding is known by its name."""
    report = mxort.convert_folder(pipeline_folder(tmp_path / "in"), tmp_path / "out")
    assert [(model.part, len(model.report.converted)) for model in report.models] == [
        ("decoder.pipeline.embedding", 1),
        ("decoder.pipeline.layers", 4),
        ("decoder.pipeline.head", 1),
    ]
    single, _ = generate(genai_folder(tmp_path / "single"), tmp_path)
    (tmp_path / "elsewhere").mkdir()
    logits, _ = generate(tmp_path / "out", tmp_path / "elsewhere", "profile")
    # Rounding to MXFP4 errs by a tenth of a weight, SQNR 20 dB, in three products behind one another.
    assert np.linalg.norm(logits - single) < 0.3 * np.linalg.norm(single)
    assert {"MatMulMXFP4", "MatMulMXINT8", "GatherMXINT8"} <= operators(tmp_path / "elsewhere")


def test_inspect_expects_what_is_converted(tmp_path, capsys):
    pipeline_folder(tmp_path / "in")
    assert main(["convert", str(tmp_path / "in"), "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [[site["status"] for site in model["sites"]] for model in shown["models"]] == [
        ["convertible"],
        ["convertible"] * 4,
        ["convertible"],
    ]


def test_a_data_file_that_another_model_reads_stays(source, tmp_path):
    (source / "unnamed.onnx").write_bytes((source / "model.onnx").read_bytes())
    mxort.convert_folder(source, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx.data").is_file()


def test_a_hub_cache_of_links(source, tmp_path):
    """As model hubs keep snapshots: every file a link to a blob, data files too."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    for i, name in enumerate(("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json")):
        (source / name).rename(blobs / str(i))
        (snapshot / name).symlink_to(Path("..", "blobs", str(i)))
    mxort.convert_folder(snapshot, tmp_path / "out")
    assert "model.onnx.data" not in files(tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    generate(tmp_path / "out", tmp_path)


def test_nothing_to_convert_is_copied_as_it_was(source, tmp_path):
    report = mxort.convert_folder(source, tmp_path / "out", exclude=["*"], table_format="float")
    (model,) = report.models
    assert model.reason == "nothing in it is to be converted"
    assert report.warnings == ("model.onnx: nothing was converted",)
    assert report.converted == ()
    assert files(tmp_path / "out") == files(source)
    for name in files(source):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_a_library_of_another_is_refused(source):
    other = config()
    other["model"]["decoder"]["session_options"]["custom_ops_library"] = "libother.so"
    with pytest.raises(MxortError, match=r"decoder has the custom_ops_library 'libother\.so'"):
        genai_config.name_library(other, "libmxort.so")
    genai_config.name_library(config(), "libmxort.so")


@pytest.mark.parametrize("options", [{}, {"session_options": None}])
def test_a_decoder_without_options_gets_some(options):
    bare = {"model": {"decoder": {"filename": "a.onnx"} | options}}
    genai_config.name_library(bare, "libmxort.so")
    assert bare["model"]["decoder"]["session_options"] == {"custom_ops_library": "libmxort.so"}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"model": 1}',
        '{"model": {"decoder": []}}',
        '{"model": {"decoder": {"session_options": 1}}}',
    ],
)
def test_what_is_no_configuration_is_an_error(tmp_path, text):
    (tmp_path / "genai_config.json").write_text(text)
    with pytest.raises(MxortError, match=r"genai_config\.json"):
        genai_config.name_library(genai_config.load(tmp_path), "libmxort.so")


def test_sessions_of_any_shape_are_found():
    model = {
        "decoder": {"filename": "a", "pipeline": {"x": {"filename": "b"}, "y": {"filename": "c"}}},
        "vision": {"pipeline": [{"z": {"filename": "d"}}]},
    }
    found = [(part.name, part.filename) for part in genai_config.parts({"model": model})]
    assert found == [
        ("decoder", "a"),
        ("decoder.pipeline.x", "b"),
        ("decoder.pipeline.y", "c"),
        ("vision.pipeline.z", "d"),
    ]
