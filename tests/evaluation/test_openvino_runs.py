"""OpenVINO's files among the models of a benchmark. OpenVINO is not among what the tests install: a stand-in of the
part of it that is used computes with onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from command import beside_peers
from mxort import cli
from mxort.errors import MxortError
from mxort.evaluation import peers
from mxort.evaluation.model_bench import bench_models
from mxort.evaluation.openvino_runs import OpenVinoModel
from tiny_models import decoder, mlp

STAND_IN = """
import os, shutil
import onnxruntime as ort
def convert_model(path):
    return path
def save_model(model, path, compress_to_fp16):
    assert compress_to_fp16 is False
    shutil.copy(model, path)
    open(os.path.splitext(path)[0] + ".bin", "wb").write(b"12345")
class Core:
    def compile_model(self, path, device, settings):
        assert device == "CPU" and settings["NUM_STREAMS"] == 1 and settings["INFERENCE_NUM_THREADS"] == 1
        if open(path, "rb").read(4) == b"junk":
            raise RuntimeError("Check failed:\\n  no model")
        self.session = ort.InferenceSession(open(path, "rb").read())
        return self
    def create_infer_request(self):
        return Request(self.session)
class Request:
    log = []
    def __init__(self, session):
        self.session = session
    def infer(self, feeds, share_inputs):
        assert share_inputs
        self.log.append(feeds)
        names = [output.name for output in self.session.get_outputs()]
        self.results = dict(zip(names, self.session.run(names, feeds)))
    def get_tensor(self, name):
        return self.results[name]
"""


@pytest.fixture
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))  # spawned workers get the path


@pytest.mark.usefixtures("_stand_in")
def test_a_peer_takes_its_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = mlp(tmp_path / "m.onnx")
    assert cli.main(beside_peers(source, runs=2)) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [Path(model["model"]).suffix for model in models] == [".onnx", ".onnx", ".onnx", ".xml"]
    assert models[-1]["file_bytes"] == source.stat().st_size + 5
    assert models[-1]["timing"]["runs"] == 2 and models[-1]["timing"]["p50_ms"] > 0


@pytest.mark.usefixtures("_stand_in")
def test_a_decoder_is_given_the_cache_that_it_made(tmp_path: Path) -> None:
    source = decoder(tmp_path / "m.onnx")
    path = peers.make("openvino", source, tmp_path)
    session = ort.InferenceSession(source)
    shapes = {fed.name: [d if isinstance(d, int) else 4 for d in fed.shape] for fed in session.get_inputs()}
    feeds = {
        name: np.ones(
            shape, np.int64 if name in ("input_ids", "attention_mask", "position_ids") else np.float32
        )
        for name, shape in shapes.items()
    }
    feeds["input_ids"] = np.array([[3, 1, 2]])
    model = OpenVinoModel(str(path), 1)
    assert model.runner(feeds, 5)["decode"]() > 0
    calls = model._requests[0].log
    assert [call["input_ids"].tolist() for call in calls] == [[[token]] for token in (3, 1, 2, 3, 1)]
    past = [name for name in feeds if name.startswith("past_key_values.")]
    assert past and all(call[name].shape[2] == step for step, call in enumerate(calls) for name in past)
    two_steps = session.run(None, dict(calls[1]))
    third = [calls[2][name] for name in past]
    assert all(any(np.array_equal(cache, result) for result in two_steps) for cache in third)


def test_without_the_library_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "is_available", lambda name: name != "openvino")
    source = mlp(tmp_path / "m.onnx")
    assert cli.main(beside_peers(source, runs=1)) == 0
    printed = capsys.readouterr()
    assert "mxort: openvino: openvino is not installed\n" in printed.err
    assert len(json.loads(printed.out)["models"]) == 3


@pytest.mark.usefixtures("_stand_in")
def test_what_cannot_be_run_is_one_line(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx")
    with pytest.raises(MxortError, match=r"m\.xml: the first model gives the inputs: got a \.xml"):
        bench_models([tmp_path / "m.xml", source], runs=1)
    with pytest.raises(MxortError, match=r"m\.xml: cannot be read: No such file"):
        bench_models([source, tmp_path / "m.xml"], runs=1)
    (tmp_path / "m.xml").write_bytes(b"junk")
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(MxortError, match=r"m\.xml: OpenVINO cannot load it: Check failed: no model"):
        bench_models([source, tmp_path / "m.xml"], runs=1, threads=1)
