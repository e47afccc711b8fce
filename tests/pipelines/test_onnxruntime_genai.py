"""docs/pipelines.md, onnxruntime-genai, on the real model."""

from __future__ import annotations

import models
import pytest

import mxort
from document import run_blocks


@pytest.mark.e2e
def test_the_blocks(tmp_path):
    source = models.smollm2()
    (tmp_path / "smollm2").mkdir()
    for name in (
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        (tmp_path / "smollm2" / name).symlink_to(source / name)
    converted, said = run_blocks("onnxruntime-genai", tmp_path)
    assert "152 nodes converted" in converted
    assert "Paris" in said
    assert {path.name for path in (tmp_path / "smollm2-mxfp4").iterdir()} > {"libmxort.so", "tokenizer.json"}
    assert mxort.inspect(tmp_path / "smollm2-mxfp4" / "model.onnx").converted
