"""The models that onnxruntime's own quantisers make, to be timed beside a conversion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from command import beside_peers
from mxort import cli
from mxort.errors import MxortError
from mxort.evaluation import peers
from tiny_models import mlp

OPERATORS = {"ort-int8": {"MatMulInteger", "DynamicQuantizeLinear"}, "ort-int4": {"MatMulNBits"}}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_peer_is_what_its_name_says_and_computes_about_the_same(tmp_path: Path, name: str) -> None:
    source = mlp(tmp_path / "m.onnx")
    made = peers.make(name, source, tmp_path)
    assert OPERATORS[name] <= {node.op_type for node in onnx.load(made).graph.node}
    sessions = [ort.InferenceSession(path) for path in (source, made)]
    (fed,) = sessions[0].get_inputs()
    shape = [d if isinstance(d, int) else 5 for d in fed.shape]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    want, got = (session.run(None, {fed.name: x})[0] for session in sessions)
    assert 0 < np.linalg.norm(got - want) < 0.3 * np.linalg.norm(want)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_no_model_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(MxortError, match=f"m.onnx: {name}: ") as error:
        peers.make(name, tmp_path / "m.onnx", tmp_path)
    assert "\n" not in str(error.value)


def test_bench_model_times_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "is_available", OPERATORS.__contains__)
    source = str(mlp(tmp_path / "m.onnx"))
    assert cli.main(beside_peers(source, runs=2)) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [Path(model["model"]).name for model in models] == ["m.onnx", "m.ort-int8.onnx", "m.ort-int4.onnx"]
    assert all(model["timing"]["runs"] == 2 for model in models)
