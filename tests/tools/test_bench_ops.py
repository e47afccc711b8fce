"""mxort/bench_ops.py, bench_peers.py, bench_foreign.py, bench_ggml.py: small runs; no time is asserted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mxort import _native
from mxort.errors import MxortError
from tools.bench import ops as bench_ops
from tools.bench import peers as bench_peers
from tools.bench import plot as bench_plot
from tools.bench.ggml import ggml_blocks
from tools.bench.peers import PEERS, Bound, Peer, Weights, choose_peers, on_threads


def product(factor):
    """make() of a candidate that computes in numpy, right where ``factor`` is 1."""

    def make(weights, threads):
        return lambda a: bench_peers.timed(lambda: None, lambda: a @ weights.mxfp4().T * factor)

    return make


SHAPES = ((1, 64, 48), (3, 64, 48), (2, 96, 32))


def test_every_peer_computes_its_own_weights():
    result = bench_ops.bench_ops(SHAPES, choose_peers(["all"]), runs=2, warmup=0, threads=1)
    optional = (
        "torch-bf16",
        "openvino-mxfp4",
        "ggml-mxfp4",
        "peak-fma",
        "peak-vnni",
        "peak-bf16",
        "peak-amx",
    )
    assert all(skip.peer in optional and not skip.wrong for skip in result.skipped), result.skipped
    absent = {(skip.peer, skip.K, skip.N) for skip in result.skipped}
    expected = [(*s, p.name) for s in SHAPES for p in PEERS if (p.name, *s[1:]) not in absent]
    assert [(r.M, r.K, r.N, r.peer) for r in result.rows] == expected
    for row in result.rows:
        peer = next(peer for peer in PEERS if peer.name == row.peer)
        assert (row.error is None) == (row.of_read is None) == (peer.stored is None)
        assert row.gb_per_s == pytest.approx(peer.weight_bytes(row.K, row.N) / row.timing.p50_ms / 1e6)
        assert len(row.turns_ms) == 2
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
    wrong = Peer("wrong", product(1.01), lambda k, n: 1, Weights.mxfp4, 1e-3)
    broken = Peer("nan", product(np.nan), lambda k, n: 1, Weights.mxfp4, 1e-3)
    right = Peer("right", product(1), lambda k, n: 1, Weights.mxfp4, 1e-3)
    result = bench_ops.bench_ops([(1, 64, 48)], [wrong, broken, right], runs=1, warmup=0)
    assert [row.peer for row in result.rows] == ["right"]
    assert [(skip.peer, skip.wrong) for skip in result.skipped] == [("wrong", True), ("nan", True)]
    assert "relative error 1.0e-02 at M = 1" in result.skipped[0].reason


def test_a_peer_that_is_not_there_is_left_out():
    def absent(weights, threads):
        raise ImportError("No module named 'other'")

    right = Peer("right", product(1), lambda k, n: 1, Weights.mxfp4, 1e-3)
    result = bench_ops.bench_ops([(1, 64, 48)], [Peer("other", absent, lambda k, n: 1, None), right], runs=1)
    (skip,) = result.skipped
    assert (skip.peer, skip.reason, skip.wrong) == ("other", "No module named 'other'", False)
    assert [row.peer for row in result.rows] == ["right"]


def test_candidates_share_no_weights():
    """Equal weights are packed once: the second candidate would find them in the cache of the first."""
    seen = []

    def make(weights, threads):
        seen.append(weights.codes)
        return product(1)(weights, threads)

    peers = [Peer(str(i), make, lambda k, n: 1, Weights.mxfp4, 1e-3) for i in range(3)]
    bench_ops.bench_ops([(1, 64, 48)], peers, runs=1, warmup=0)
    assert len({codes.tobytes() for codes in seen}) == 3


def test_unknown_peer():
    with pytest.raises(MxortError, match=r"unknown peer: got 'nobody', expected one of ort-fp32, "):
        choose_peers(["nobody"])


def test_plot(tmp_path):
    right = Peer("right", product(1), lambda k, n: 1, Weights.mxfp4, 1e-3)
    result = bench_ops.bench_ops(SHAPES, [right], runs=1, warmup=0)
    bench_plot.plot_ops(result, str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    for target in (tmp_path / "absent" / "out.png", tmp_path / "out.nosuchformat"):
        with pytest.raises(MxortError, match="cannot write the plot"):
            bench_plot.plot_ops(result, str(target))


def test_cold_runs_every_copy_and_hot_runs_one(monkeypatch):
    """Made-up clocks: a turn is the median over the copies, or over the runs after an untimed one."""
    made = []

    def make(weights, threads):
        copy = len(made)
        made.append(copy)
        calls = iter(range(1000))
        return lambda a: Bound(lambda: 1.0 + copy + 10 * (next(calls) == 0), lambda: a @ weights.mxfp4().T)

    peer = Peer("clock", make, lambda k, n: 1 << 30, Weights.mxfp4, 1e-3)
    (cold,) = bench_ops.bench_ops([(1, 64, 48)], [peer], runs=4, warmup=0, threads=1, cold=True).rows
    assert made == [0, 1, 2]  # as few as there may be: each is larger than any cache
    assert cold.cold
    assert cold.turns_ms[-1] == 2000.0
    made.clear()
    (hot,) = bench_ops.bench_ops([(1, 64, 48)], [peer], runs=2, warmup=0, threads=1).rows
    assert (made, hot.turns_ms) == ([0], (1000.0, 1000.0))
    assert not hot.cold


@pytest.mark.parametrize(("megabytes", "copies"), [(1, 12), (40, 3), (10, 7)])
def test_copies_are_twice_as_large_as_the_caches(monkeypatch, megabytes, copies):
    machine = bench_ops.describe_machine()
    monkeypatch.setattr(
        bench_ops, "describe_machine", lambda: machine.__class__(**vars(machine) | {"cache_bytes": 32 << 20})
    )
    assert bench_ops.copies_for(megabytes << 20) == copies


def test_shares_of_the_limits():
    """A row at half the speed of the read and, forming two products for one, at a quarter of the peak."""

    def at(seconds):
        return lambda weights, threads: lambda a: Bound(lambda: seconds, lambda: a @ weights.mxfp4().T)

    row = Peer("row", at(8.0), lambda k, n: 100, Weights.mxfp4, 1e-3, lambda m: ("vnni", 2))
    read = Peer("read", at(4.0), lambda k, n: 100, None)
    peak = Peer("peak-vnni", at(1.0), lambda k, n: 0, None)
    other = on_threads(Peer("peak-vnni", at(5.0), lambda k, n: 0, None), 2)
    found = bench_ops.bench_ops([(1, 64, 48)], [row, read, other, peak], runs=1, warmup=0, threads=1).rows
    assert (found[0].of_read, found[0].of_peak, found[0].unit) == (0.5, 0.25, "vnni")
    assert [r.of_peak for r in found[1:]] == [None] * 3


def test_a_peer_may_have_its_own_threads():
    seen = []
    peer = Peer(
        "p",
        lambda w, threads: seen.append(threads) or product(1)(w, threads),
        lambda k, n: 1,
        Weights.mxfp4,
        1e-3,
    )
    peers = [on_threads(peer, 1), on_threads(peer, 2), peer]
    rows = bench_ops.bench_ops([(1, 64, 48)], peers, runs=1, warmup=0, threads=3).rows
    assert seen == [1, 2, 3]
    assert [row.peer for row in rows] == ["p@1", "p@2", "p"]


def test_ggml_block_layout():
    """By hand: scale first, then element i in the low and i + 16 in the high half of byte i."""
    elements = np.arange(32) % 16
    codes = (elements[0::2] | elements[1::2] << 4).astype(np.uint8)[None]
    (block,) = ggml_blocks(codes, np.array([[130]], np.uint8))
    assert block.tolist() == [130, *(i | i << 4 for i in range(16))]


def test_limits_of_the_machine():
    data = np.ones(1 << 20, np.uint8)
    assert 0 < _native.read_seconds(data, 2) < 1
    units = {}
    for unit in ("fma", "vnni", "bf16", "amx"):
        try:
            units[unit] = _native.peak_rate(unit)
        except ValueError as error:
            assert f"this CPU has no {unit} unit" in str(error)
    assert all(rate > 1e8 for rate in units.values())
    with pytest.raises(ValueError, match="got 'gpu', expected fma, vnni, bf16 or amx"):
        _native.peak_rate("gpu")
    for call in (lambda: _native.peak_rate("fma", 0), lambda: _native.read_seconds(data, 0)):
        with pytest.raises(ValueError, match="threads: got 0"):
            call()
