"""mxort/bench_models.py, bench_session.py: small models, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import mxort
from mxort.errors import MxortError
from mxort.evaluation import model_bench as bench_models_module
from mxort.evaluation import plot
from mxort.evaluation.model_bench import bench_models
from mxort.evaluation.model_runs import make_runner
from tiny_models import HEADS, WIDTHS, decoder, mlp


@pytest.fixture
def pair(tmp_path):
    mxort.convert(mlp(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    return tmp_path / "a.onnx", tmp_path / "b.onnx"


def test_models(pair):
    seen = []
    result = bench_models(
        pair, runs=4, warmup=1, threads=1, dims={"batch": 3}, progress=lambda *a: seen.append(a)
    )
    assert [row.model for row in result.models] == [str(path) for path in pair]
    assert result.inputs == {"x": f"float32[3, {WIDTHS[0]}]"}
    assert seen[-1] == ("round 4 of 4", 1.0)
    for row, path in zip(result.models, pair, strict=True):
        assert row.file_bytes == path.stat().st_size
        assert row.timing.runs == 4
        assert 0 < row.timing.min_ms <= row.timing.p50_ms <= row.timing.p90_ms <= row.timing.p99_ms
        assert 1e7 < row.base_rss_bytes < row.peak_rss_bytes
        assert row.load_seconds > 0
        assert row.anonymous_bytes > 0
        assert (row.decode, row.prefill_tokens_per_s, row.decode_tokens_per_s) == (None, None, None)
        assert len(row.turns_ms["run"]) == 4
    assert result.models[0].timing.ratio == 1.0
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["models"][1]["timing"]["runs"] == 4
    assert multiprocessing.active_children() == []


def test_peak_memory_is_the_models_own(pair, tmp_path):
    """A model with 64 MB of weights shows in its own figure, not in that of its neighbour."""
    big = mlp(tmp_path / "big.onnx")
    model = onnx.load(big)
    padding = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(padding, "padding"))
    onnx.save(model, big)
    small, large = bench_models([pair[0], big], runs=1, warmup=0).models
    assert large.peak_rss_bytes - small.peak_rss_bytes > padding.nbytes


def test_a_model_that_does_not_load_is_named_and_no_process_stays(pair, tmp_path):
    bad = mlp(tmp_path / "bad.onnx")
    model = onnx.load(bad)
    model.graph.node[0].op_type = "NoSuchOperator"
    bad.write_bytes(model.SerializeToString())
    with pytest.raises(MxortError, match=r"bad\.onnx: "):
        bench_models([pair[0], bad], runs=1)
    assert multiprocessing.active_children() == []


def test_a_model_that_fails_to_run_is_named(pair, tmp_path, capfd):
    """Its shapes are right for the checker, wrong for the multiplication."""

    bad = mlp(tmp_path / "bad.onnx")
    model = onnx.load(bad)
    shape = onnx.numpy_helper.from_array(np.array([7, 9], np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.insert(3, onnx.helper.make_node("Reshape", ["h2", "shape"], ["h3"]))
    model.graph.node[4].input[0] = "h3"
    del model.graph.value_info[:]
    bad.write_bytes(model.SerializeToString())
    with pytest.raises(MxortError, match=r"bad\.onnx: (fails to run|onnxruntime cannot open it): "):
        bench_models([pair[0], bad], runs=1)
    assert capfd.readouterr().err == ""


def test_inputs_must_fit_every_model(pair, tmp_path):
    other = mlp(tmp_path / "other.onnx")
    model = onnx.load(other)
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"
    onnx.save(model, other)
    with pytest.raises(MxortError, match=r"other\.onnx: no array for input z"):
        bench_models([pair[0], other])


def test_a_process_that_dies_is_reported(pair):
    job = bench_models_module._Job({"x": np.zeros((1, WIDTHS[0]), np.float32)}, 1, 0)
    with bench_models_module._workers([pair[0]], job) as (worker,):
        worker.receive()
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(MxortError, match=r"a\.onnx: its process ended with status -9"):
            worker.process.join()
            worker.receive()


class Recorder:
    """A session that remembers the feeds of run_with_ort_values()."""

    def __init__(self, path):
        self.session = ort.InferenceSession(path)
        self.seen = []

    def get_inputs(self):
        return self.session.get_inputs()

    def get_outputs(self):
        return self.session.get_outputs()

    def run_with_ort_values(self, names, feeds):
        self.seen.append({name: value.numpy().copy() for name, value in feeds.items()})
        return self.session.run_with_ort_values(names, feeds)


def test_a_decoder_is_fed_what_it_returned(tmp_path):
    """The cache grows by one position for each token, and holds the keys of the tokens before."""
    recorder = Recorder(decoder(tmp_path / "decoder.onnx"))
    tokens = np.array([[5, 3, 8]])
    feeds = {
        "input_ids": tokens,
        "attention_mask": np.ones((1, 3), np.int64),
        "past_key_values.0.key": np.zeros((1, *HEADS, 0, 4), np.float32),
    }
    assert make_runner(recorder, feeds, 5)["decode"]() > 0
    assert [int(seen["input_ids"][0, 0]) for seen in recorder.seen] == [5, 3, 8, 5, 3]
    assert [seen["attention_mask"].shape for seen in recorder.seen] == [(1, i) for i in range(1, 6)]
    assert "position_ids" not in recorder.seen[0]
    last = recorder.seen[-1]["past_key_values.0.key"]
    assert last[0, 0, :, 0].tolist() == [5, 3, 8, 5]


def test_decoders(tmp_path):
    models = [decoder(tmp_path / "a.onnx"), decoder(tmp_path / "b.onnx")]
    result = bench_models(models, runs=3, warmup=0, threads=1, prompt=7, generate=4, profile=True)
    assert result.inputs["input_ids"] == "int64[1, 7]"
    for row in result.models:
        assert row.prefill_tokens_per_s == pytest.approx(7e3 / row.timing.p50_ms)
        assert row.decode_tokens_per_s == pytest.approx(1e3 / row.decode.p50_ms)
        assert {kind: len(turns) for kind, turns in row.turns_ms.items()} == {"run": 3, "decode": 3}
        for shares in row.node_shares.values():
            assert sum(shares.values()) == pytest.approx(1)
            assert "Gather" in shares
    assert result.models[0].decode.ratio == 1.0
    plot.plot_models(result, str(tmp_path / "out.svg"))
    drawn = (tmp_path / "out.svg").read_text()
    assert drawn.startswith("<?xml")
    with pytest.raises(MxortError, match="cannot write the plot"):
        plot.plot_models(result, str(tmp_path / "absent" / "out.svg"))
