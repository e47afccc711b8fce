"""Every command that runs a model takes decoders whose KV cache is a window: it must hold at least that much."""

from __future__ import annotations

import numpy as np
import pytest

import mxort
from mxort.calibration.data import complete
from mxort.calibration.example_inputs import generate_inputs
from mxort.converters import model_io
from mxort.evaluation.evaluate import evaluate
from sliding_window import HEAD, HEADS, VOCABULARY, WINDOW, sliding_window

LONG = 3 * WINDOW


@pytest.fixture
def pair(tmp_path):
    source = sliding_window(tmp_path / "a.onnx")
    mxort.convert(source, tmp_path / "b.onnx", min_elements=1)
    return source, tmp_path / "b.onnx"


@pytest.mark.parametrize(
    ("dims", "window"),
    [({}, WINDOW), ({"window": 40}, 40), ({"window": 3}, WINDOW)],
    ids=["made up", "wide", "narrow"],
)
def test_what_is_made_up(tmp_path, dims, window):
    model = model_io.load(sliding_window(tmp_path / "a.onnx")).model
    made = generate_inputs(model, "m", dims=dims)
    assert made["past_key_values.0.key"].shape == (1, HEADS, 0, HEAD)
    assert made["past_key_values.1.value"].shape == (1, HEADS, window, HEAD)
    sample = complete(np.arange(LONG), model, "m")
    assert sample["past_key_values.1.key"].shape == (1, HEADS, WINDOW, HEAD)


def test_compare(pair):
    result = mxort.compare(*pair)
    assert 5 < result.outputs[0].sqnr_db < 40


def test_eval_reads_nothing_of_the_made_up_cache(pair):
    """The perplexity does not depend on what stands in the cache, which holds no token yet."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, LONG)
    found = evaluate(*pair, [tokens]).metrics
    cache = {
        f"past_key_values.{i}.{what}": np.zeros((1, HEADS, WINDOW if i else 0, HEAD), np.float32)
        for i in range(2)
        for what in ("key", "value")
    }
    given = {"input_ids": tokens[None], "attention_mask": np.ones((1, LONG), np.int64)} | cache
    assert evaluate(*pair, [given]).metrics == found


def test_calibration(pair, tmp_path):
    rng = np.random.default_rng(0)
    data = [rng.integers(0, VOCABULARY, LONG) for _ in range(4)]
    report = mxort.convert(pair[0], tmp_path / "c.onnx", calibration=data, min_elements=1)
    algorithms = {(site.algorithm, site.weight_format) for site in report.converted}
    assert algorithms == {("mr-gptq", "mxfp4"), ("rtn", "mxint8")}, "a wide table is not calibrated"
