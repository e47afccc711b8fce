"""mxort/bench.py, bench_ops.py, bench_peers.py: the clockwork with made-up clocks, then small real runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import onnx
import pytest

import mxort
from mxort import bench, bench_ops, bench_peers
from mxort.bench import bench_models, interleave, summarize
from mxort.bench_peers import PEERS, Peer, Weights, choose_peers
from mxort.errors import MxortError
from tiny_models import WIDTHS, mlp


def test_summary_of_known_times():
    seconds = [i / 1000 for i in range(1, 101)]  # 1 ... 100 ms
    timing = summarize(seconds, [2 * s for s in seconds])
    assert timing.runs == 100
    assert timing.min_ms == pytest.approx(1)
    assert timing.p50_ms == pytest.approx(50.5)
    assert timing.p90_ms == pytest.approx(90.1)
    assert timing.p99_ms == pytest.approx(99.01)
    assert timing.ratio == pytest.approx(2)


def test_the_ratio_is_taken_round_by_round():
    """The machine slows down tenfold in the third round, between the two: their medians would say 1/5."""
    first = [1.0, 1.0, 1.0, 10.0, 10.0]
    second = [0.5, 0.5, 5.0, 5.0, 5.0]
    assert summarize(second, first).ratio == pytest.approx(2)


def test_candidates_take_turns_and_warmup_is_not_counted():
    order = []
    clocks = [iter(range(100)), iter(range(100, 200))]
    candidates = [lambda i=i: order.append("AB"[i]) or float(next(clocks[i])) for i in (0, 1)]
    rounds = []
    times = interleave(candidates, runs=3, warmup=2, on_round=rounds.append)
    assert "".join(order) == "AB" * 5
    assert times == [[2.0, 3.0, 4.0], [102.0, 103.0, 104.0]]
    assert rounds == [1, 2, 3]


def test_time_ends_a_benchmark_but_not_before_three_rounds():
    slow = [lambda: time.sleep(0.01) or 0.01]
    assert len(interleave(slow, runs=1000, warmup=0, max_seconds=0)[0]) == bench.MIN_ROUNDS
    assert bench.MIN_ROUNDS < len(interleave(slow, runs=1000, warmup=0, max_seconds=0.1)[0]) < 15


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
    with bench._workers([pair[0]], {"x": np.zeros((1, WIDTHS[0]), np.float32)}, 1) as (worker,):
        worker.receive()
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(MxortError, match=r"a\.onnx: its process ended with status -9"):
            worker.process.join()
            worker.receive()


SHAPES = ((1, 64, 48), (3, 64, 48), (2, 96, 32))


def test_every_peer_computes_its_own_weights():
    result = bench_ops.bench_ops(SHAPES, choose_peers(["all"]), runs=2, warmup=0, threads=1)
    assert result.skipped == ()
    names = [peer.name for peer in PEERS]
    assert [(r.M, r.K, r.N, r.peer) for r in result.rows] == [(*s, name) for s in SHAPES for name in names]
    for row in result.rows:
        peer = next(peer for peer in PEERS if peer.name == row.peer)
        assert (row.error is None) == (row.of_read is None) == (peer.stored is None)
        assert row.gb_per_s == pytest.approx(peer.weight_bytes(row.K, row.N) / row.timing.p50_ms / 1e6)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["threads"] == 1


def test_kernels_can_join():
    names = bench_peers.kernel_names()
    assert "portable" in names
    assert "reference" not in names
    peers = choose_peers(["kernel:portable", "mxort"], kernels=True)
    assert [peer.name for peer in peers] == ["mxort", "kernel:portable"]
    result = bench_ops.bench_ops([(2, 64, 48)], peers, runs=1, warmup=0, threads=1)
    assert [row.peer for row in result.rows] == ["mxort", "kernel:portable"]


def test_a_peer_with_wrong_numbers_is_not_timed():
    wrong = Peer(
        "wrong", lambda w, threads: lambda a: a @ w.mxfp4().T * 1.01, lambda k, n: 1, Weights.mxfp4, 1e-3
    )
    broken = Peer(
        "nan", lambda w, threads: lambda a: a @ w.mxfp4().T * np.nan, lambda k, n: 1, Weights.mxfp4, 1e-3
    )
    right = Peer("right", lambda w, threads: lambda a: a @ w.mxfp4().T, lambda k, n: 1, Weights.mxfp4, 1e-3)
    result = bench_ops.bench_ops([(1, 64, 48)], [wrong, broken, right], runs=1, warmup=0)
    assert [row.peer for row in result.rows] == ["right"]
    assert [(skip.peer, skip.wrong) for skip in result.skipped] == [("wrong", True), ("nan", True)]
    assert "relative error 1.0e-02 at M = 1" in result.skipped[0].reason


def test_a_peer_that_is_not_there_is_left_out():
    def absent(weights, threads):
        raise ImportError("No module named 'other'")

    right = Peer("right", lambda w, threads: lambda a: a @ w.mxfp4().T, lambda k, n: 1, Weights.mxfp4, 1e-3)
    result = bench_ops.bench_ops([(1, 64, 48)], [Peer("other", absent, lambda k, n: 1, None), right], runs=1)
    (skip,) = result.skipped
    assert (skip.peer, skip.reason, skip.wrong) == ("other", "No module named 'other'", False)
    assert [row.peer for row in result.rows] == ["right"]


def test_candidates_share_no_weights():
    """Equal weights are packed once: the second candidate would find them in the cache of the first."""
    seen = []

    def make(weights, threads):
        seen.append(weights.codes)
        return lambda a: a @ weights.mxfp4().T

    peers = [Peer(str(i), make, lambda k, n: 1, Weights.mxfp4, 1e-3) for i in range(3)]
    bench_ops.bench_ops([(1, 64, 48)], peers, runs=1, warmup=0)
    assert len({codes.tobytes() for codes in seen}) == 3


def test_unknown_peer():
    with pytest.raises(MxortError, match=r"unknown peer: got 'nobody', expected one of ort-fp32, "):
        choose_peers(["nobody"])


def test_plot(tmp_path):
    right = Peer("right", lambda w, threads: lambda a: a @ w.mxfp4().T, lambda k, n: 1, Weights.mxfp4, 1e-3)
    result = bench_ops.bench_ops(SHAPES, [right], runs=1, warmup=0)
    bench_ops.plot(result, str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    for target in (tmp_path / "absent" / "out.png", tmp_path / "out.nosuchformat"):
        with pytest.raises(MxortError, match="cannot write the plot"):
            bench_ops.plot(result, str(target))
