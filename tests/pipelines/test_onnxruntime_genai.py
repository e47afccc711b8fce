"""docs/pipelines.md, onnxruntime-genai and the server over it, on the real model."""

from __future__ import annotations

import models
import pytest

import mxort
from document import run_blocks


def linked(tmp_path):
    """The folder that the blocks begin with."""
    source = models.smollm2()
    (tmp_path / "smollm2").mkdir()
    for name in (
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        (tmp_path / "smollm2" / name).symlink_to(source / name)


@pytest.mark.e2e
def test_the_blocks(tmp_path):
    linked(tmp_path)
    converted, said = run_blocks("onnxruntime-genai", tmp_path)
    assert "152 nodes converted" in converted
    assert "Paris" in said
    assert {path.name for path in (tmp_path / "smollm2-mxfp4").iterdir()} > {"libmxort.so", "tokenizer.json"}
    assert mxort.inspect(tmp_path / "smollm2-mxfp4" / "model.onnx").converted


@pytest.mark.e2e
def test_the_server(tmp_path):
    linked(tmp_path)
    converted, said, measured = run_blocks("A server with OpenAI's interface", tmp_path)
    assert "152 nodes converted" in converted
    assert "Paris" in said
    assert "prompt 32, answer 8 tokens" in measured
    assert "<svg" in (tmp_path / "load.html").read_text()
