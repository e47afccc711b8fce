"""A model whose cache the conversion made smaller is compared, scored and timed beside the original."""

from __future__ import annotations

import numpy as np
import pytest

import mxort
from mxort.evaluation.comparison import compare
from mxort.evaluation.evaluate import evaluate
from mxort.evaluation.model_bench import bench_models
from sliding_window import VOCABULARY, sliding_window


@pytest.fixture(params=["mxfp8", "mxfp4"])
def pair(request, tmp_path):
    reference, converted = tmp_path / "reference.onnx", tmp_path / "converted.onnx"
    sliding_window(reference, 1, rotary=True)
    mxort.convert(reference, converted, kv_cache=request.param)
    return reference, converted


def test_compare(pair):
    result = compare(*pair)
    (logits,) = [row for row in result.outputs if row.name == "logits"]
    assert 0 < logits.sqnr_db < 60
    assert {name for name in result.unmatched if "present" in name}  # bytes are not compared with floats


def test_evaluate(pair):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 20)
    data = [{"input_ids": tokens[None], "attention_mask": np.ones((1, 20), np.int64)}]
    metrics = evaluate(*pair, data).metrics
    assert metrics["perplexity"] > 1 and metrics["kl"] > 0


def test_bench(pair):
    result = bench_models(pair, runs=2, warmup=1, generate=3)
    assert all(model.decode is not None for model in result.models)
