"""docs/pipelines.md, Olive: on a tiny model with external data."""

from __future__ import annotations

import json

import mxort
from document import run_blocks
from tiny_models import mlp


def test_the_blocks(tmp_path):
    mlp(tmp_path / "model.onnx", external=True)
    run_blocks("Olive", tmp_path)
    made = mxort.inspect(tmp_path / "mxfp4" / "model.onnx")
    assert made.converted
    assert {site.activation_format for site in made.sites if site.status == "converted"} == {"mxfp8_e4m3"}
    session = mxort.InferenceSession(tmp_path / "mxfp4" / "model.onnx")  # with its data
    assert [value.name for value in session.get_outputs()] == ["y"]
    passes = json.loads((tmp_path / "passes.json").read_text())["passes"]
    assert "OnnxConversion" in passes  # Olive's own stay
