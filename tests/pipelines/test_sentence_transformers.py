"""docs/pipelines.md, sentence-transformers: on a tiny model, and that our kernels run it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from sentence_transformers import SentenceTransformer

import mxort.sentence_transformers
import tiny_bert
from document import run_blocks
from mxort.serve.encoder import Encoder
from mxort.serve.limits import Limits

SENTENCES = ["the cat sat on the mat", "red apple", "the dog sat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the blocks run: minilm, and what they write."""
    work = tmp_path_factory.mktemp("work")
    tiny_bert.sentence_transformers(work / "minilm", work)
    return work


def test_the_blocks(folder):
    converted, similarity = run_blocks("sentence-transformers", folder)
    assert "13 nodes converted" in converted
    assert "2 x MultiHeadAttention on this library's kernel" in converted
    assert "1 of 1 models converted" in converted
    (value,) = re.findall(r"tensor\(\[\[(.*)\]\]\)", similarity)
    assert -1 < float(value) < 1
    assert mxort.inspect(folder / "minilm-w8" / "onnx" / "model.onnx").converted


def test_the_kernels_run(folder, tmp_path):
    mxort.convert_folder(folder / "minilm", tmp_path / "out")
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    model = mxort.sentence_transformers.open(tmp_path / "out", model_kwargs={"session_options": options})
    found = model.encode(SENTENCES)
    events = json.loads(Path(model[0].auto_model.session.end_profiling()).read_text())
    ran = [event["args"].get("op_name") for event in events if event.get("cat") == "Node"]
    assert sum((name or "").endswith("MatMulMXFP4") for name in ran) == 12  # two with the GELU behind them

    # Without the library, as float; each of the products is within 1e-2 of that.
    keywords = {"provider": "CPUExecutionProvider"}
    plain = SentenceTransformer(str(tmp_path / "out"), backend="onnx", model_kwargs=keywords).encode(
        SENTENCES
    )
    assert np.abs(found - plain).max() < 2e-2
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


def test_a_server_embeds_the_same(folder, tmp_path):
    """mxort serve reads the folder without torch; here with sentence-transformers beside it."""
    model = mxort.sentence_transformers.open(folder / "minilm")
    encoder = Encoder("minilm", folder / "minilm", Limits(), "cpu")
    vectors, tokens = asyncio.run(encoder.embed(SENTENCES))
    encoder.close()
    np.testing.assert_allclose(vectors, model.encode(SENTENCES), atol=1e-5)
    assert tokens == sum(len(sentence.split()) + 2 for sentence in SENTENCES)
