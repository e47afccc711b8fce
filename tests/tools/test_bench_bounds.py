"""mxort/bench_bounds.py, bench_cases.py, bench_report.py: judging made-up runs, and a real run on tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mxort.errors import MxortError
from mxort.runtime.machine import describe_machine
from tiny_models import decoder, mlp
from tools.bench import bounds as bench_bounds
from tools.bench import cases as bench_cases
from tools.bench import report as bench_report
from tools.bench.bounds import BEYOND, BOUNDS, MET, NOT_MEASURED, OTHER_CPU, SHORT, Bound, judge
from tools.bench.cases import CASES, Measured, Place, Row, Size
from tools.bench.experts import CANDIDATES, Layer
from tools.bench.peers import PEERS

LEVEL_3, LEVEL_4, LEVEL_1, MXFP6 = "mxort", "mxort-int8", "mxort-fp32", "mxort-mxfp6"
REQUIRED = [
    # case, M or kind of turn, ours, against, at least: the table, one line after the other
    *(("m1-m16", "1x", peer, "read-mxfp4", 0.95) for peer in (LEVEL_4, MXFP6, "mxort-mxfp4")),
    *(("cold", "1x", peer, "read-mxfp4", 0.88) for peer in (LEVEL_4, MXFP6, "mxort-mxfp4")),
    ("m1-m16", "1x", LEVEL_4, "ort-int4-a8", 1.5),
    ("m1-m16", "1x", LEVEL_4, "ggml-mxfp4", 2),
    ("m1-m16", "1x", LEVEL_4, "ort-fp32", 10),
    ("cold", "1x", LEVEL_4, "ort-fp32", 6),
    ("m1-m16", "1x", LEVEL_3, "ort-int4-a8", 1.3),
    ("cold", "1x", LEVEL_3, "ort-int4-a8", 1.5),
    ("m1-m16", "4x", LEVEL_4, "ort-int4-a8", 2.6),
    ("m1-m16", "4x", MXFP6, "ort-int4-a8", 2.6),
    ("m1-m16", "4x", LEVEL_3, "ort-int4-a8", 1.5),
    ("m1-m16", "16x", LEVEL_3, "ort-int4-a8", 3.2),
    ("m1-m16", "16x", LEVEL_3, "ort-fp32", 5),
    *((("m64" if m == "64x" else "m256-m512"), m, LEVEL_3, "ort-fp32", 8) for m in ("64x", "256x", "512x")),
    *(
        (("m64" if m == "64x" else "m256-m512"), m, LEVEL_3, "ort-int4-a8", 8)
        for m in ("64x", "256x", "512x")
    ),
    *(
        (("m64" if m == "64x" else "m256-m512"), m, LEVEL_3, "torch-bf16", 1.3)
        for m in ("64x", "256x", "512x")
    ),
    *(
        (("m64" if m == "64x" else "m256-m512"), m, LEVEL_3, "openvino-mxfp4", 1.8)
        for m in ("64x", "256x", "512x")
    ),
    *((("m64" if m == "64x" else "m256-m512"), m, LEVEL_3, "ort-int8", 1) for m in ("64x", "256x", "512x")),
    *(
        (("m64" if m == "64x" else "m256-m512"), m, LEVEL_3, "peak-amx", 0.45)
        for m in ("64x", "256x", "512x")
    ),
    ("m256-m512", "256x", LEVEL_1, "ort-fp32", 2),
    *(("threads", m, f"{LEVEL_3}@2", f"{LEVEL_3}@1", 1.85) for m in ("1x", "256x")),
    ("small", "", LEVEL_3, "ort-fp32", 1),
    ("minilm", "run", LEVEL_3, "ort-fp32", 2.5),
    ("smollm2", "decode", LEVEL_3, "ort-fp32", 4),
    ("smollm2", "decode", LEVEL_3, "ort-int4-a8", 1.3),
    ("smollm2", "run", LEVEL_3, "ort-fp32", 3),
]
AT_MOST = [
    ("m1-m16", LEVEL_3, 3e-5),
    ("m256-m512", LEVEL_1, 1e-6),
    ("overhead", "microseconds above Identity", 3),
    ("memory", "anonymous / packed", 1.15),
    ("memory", "second session / packed", 0.05),
]


@pytest.mark.parametrize("line", REQUIRED, ids=lambda line: " ".join(map(str, line)))
def test_every_ratio_is_in_the_table(line):
    case, shape, ours, against, limit = line
    found = [b for b in BOUNDS if (b.case, b.shape, b.against) == (case, shape, against) and ours in b.ours]
    assert [(b.kind, b.limit) for b in found] == [(bench_bounds.RATIO, limit)]


def test_every_upper_limit_is_in_the_table():
    found = [(b.case, b.ours[0], b.limit) for b in BOUNDS if b.kind != bench_bounds.RATIO]
    assert found == AT_MOST


def test_bounds_name_what_there_is():
    peers = {peer.name for peer in PEERS} | set(CANDIDATES)
    for bound in BOUNDS:
        assert bound.case in CASES
        if bound.kind != bench_bounds.VALUE:
            named = {name.partition("@")[0] for name in (*bound.ours, bound.against) if name}
            assert named <= peers
            assert all(bench_bounds.label(name) != name for name in named)


BOUND = Bound("case", ("a", "b"), "other", 2.0, shape="1x")


def measured(*rows, machine=None, **fields):
    return {"case": Measured(machine or describe_machine(), "1.31", "2026-01-01 00:00", 1.0, rows, **fields)}


def row(peer, *turns, shape="1x8x8", **fields):
    return Row(peer, shape, turns, **fields)


def test_the_worst_of_ours_decides():
    rows = row("other", 6.0, 6.0, 6.0), row("a", 2.0, 2.0, 2.0), row("b", 3.0, 4.0, 3.0)
    verdict = judge(BOUND, measured(*rows), {})
    assert (verdict.found, verdict.fastest, verdict.ours, verdict.verdict) == (2.0, 2.0, "b", MET)
    busy = row("other", 6.0, 6.0, 6.0), row("a", 1.0, 9.0, 9.0), row("b", 1.0, 1.0, 1.0)
    verdict = judge(BOUND, measured(*busy), {})
    assert (verdict.found, verdict.fastest, verdict.ours) == (pytest.approx(2 / 3), 6.0, "a")
    verdict = judge(replace(BOUND, limit=2.01), measured(*rows), {})
    assert verdict.verdict == SHORT


def test_the_worst_shape_decides_and_only_shapes_asked_for():
    rows = (
        *(row("other", 6.0, shape=shape) for shape in ("1x8x8", "1x9x9", "16x8x8")),
        row("a", 1.0),
        row("a", 5.0, shape="1x9x9", of_read=0.5),
        row("a", 60.0, shape="16x8x8"),
    )
    verdict = judge(BOUND, measured(*rows), {})
    assert (verdict.found, verdict.verdict) == (1.2, SHORT)
    assert verdict.bound_by == "50% of plain read; the limit allows 2.4x"
    anywhere = judge(replace(BOUND, shape=""), measured(*rows), {})
    assert anywhere.found == pytest.approx(0.1)


def test_a_bound_that_the_machine_does_not_allow():
    """At 80 % of the peak and 1.5 times as fast, the peak itself is 1.875 times as fast: less than the bound."""
    rows = row("other", 3.0), row("a", 2.0, of_peak=0.8, of_read=0.07, unit="vnni")
    verdict = judge(BOUND, measured(*rows), {})
    assert (verdict.found, verdict.verdict) == (1.5, BEYOND)
    assert verdict.bound_by == "80% of VNNI peak; the limit allows 1.9x"


def test_a_bound_for_a_unit_that_is_not_there():
    without = replace(describe_machine(), isa=("avx2",))
    bound = replace(BOUND, needs="amx_bf16")
    slow, fast = (row("other", 3.0), row("a", 2.0)), (row("other", 3.0), row("a", 1.0))
    assert judge(bound, measured(*slow, machine=without), {}).verdict == OTHER_CPU
    assert judge(bound, measured(*fast, machine=without), {}).verdict == MET
    there = replace(without, isa=("amx_bf16",))
    assert judge(bound, measured(*slow, machine=there), {}).verdict == SHORT


def test_two_threads_are_judged_by_what_the_machine_scales():
    times = {
        "a@1": 4.0,
        "a@2": 3.0,
        "read-mxfp4@1": 3.0,
        "read-mxfp4@2": 2.0,
        "peak-vnni@1": 9.0,
        "peak-vnni@2": 5.0,
    }
    rows = [row(peer, ms) for peer, ms in times.items()]
    bound = Bound("case", ("a@2",), "a@1", 1.7, shape="1x")
    verdict = judge(bound, measured(*rows), {})
    assert verdict.bound_by == "two threads over one: plain read 1.50x, VNNI peak 1.80x"
    assert (verdict.found, verdict.verdict) == (pytest.approx(4 / 3), SHORT)
    assert judge(replace(bound, limit=1.85), measured(*rows), {}).verdict == BEYOND


def test_errors_and_values():
    rows = row("a", 1.0, error=1e-6), row("a", 1.0, shape="1x9x9", error=3e-6)
    error = Bound("case", ("a",), "", 2e-6, bench_bounds.ERROR, "1x")
    assert (judge(error, measured(*rows), {}).found, judge(error, measured(*rows), {}).verdict) == (
        3e-6,
        SHORT,
    )
    assert judge(replace(error, limit=3e-6), measured(*rows), {}).verdict == MET
    value = Bound("case", ("v",), "", 3.0, bench_bounds.VALUE)
    assert judge(value, measured(values={"v": 3.0}), {}).verdict == MET
    assert judge(value, measured(values={"v": 3.1}), {}).verdict == SHORT


def test_what_was_not_measured_says_why():
    assert judge(BOUND, {}, {"case": "no cores"}).bound_by == "no cores"
    absent = measured(row("a", 1.0), missing={"other": "other is not installed"})
    verdict = judge(BOUND, absent, {})
    assert (verdict.verdict, verdict.bound_by, verdict.found) == (
        NOT_MEASURED,
        "other is not installed",
        None,
    )


LEFT_OUT = {"m1-m16", "m64", "m256-m512", "threads"}

TINY = Size(
    runs=1,
    seconds=0.01,
    large=64,
    small_shapes=((32, 64),),
    small_rows=(1, 3),
    prompt=4,
    generate=2,
    experts=Layer(experts=4, chosen=2, width=64),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tiny models where the real ones would be."""
    folder = tmp_path_factory.mktemp("bounds")
    for name in ("minilm", "smollm2"):
        (folder / "models" / name).mkdir(parents=True)
    mlp(folder / "models" / "minilm" / "model.onnx")
    decoder(folder / "models" / "smollm2" / "model.onnx")
    return Place(folder / "models", folder / "work")


@pytest.fixture(scope="module")
def run(place):
    """Cases of every kind; "m64" is left out, as if it had been interrupted."""
    run = bench_report.Run(place.work)
    run.measure(list(set(CASES) - LEFT_OUT), TINY, place)
    return run


def test_a_tiny_run_is_well_formed(run, place):
    assert run.why_not == {}
    written = json.loads((place.work / bench_report.RESULTS).read_text(), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(run.to_dict()))
    assert {v["verdict"] for v in written["verdicts"] if v["what"] == "M = 64"} == {NOT_MEASURED}
    shapes = {r["shape"] for r in written["cases"]["small"]["rows"]}
    assert shapes == {"1x32x64", "3x32x64"}
    assert {f"read-mxfp4 {state} GB/s, 1 threads" for state in ("hot", "cold")} <= set(
        written["cases"]["limits"]["values"]
    )
    assert written["cases"]["memory"]["values"]["packed bytes"] == 8 * 64 * 2 * 17
    assert {r["peer"] for r in written["cases"]["minilm"]["rows"]} == {
        "ort-fp32",
        "mxort",
        "mxort-int8",
        "ort-int4-a8",
    }
    assert {r["shape"] for r in written["cases"]["smollm2"]["rows"]} == {"run", "decode"}
    assert all(t > 0 for case in written["cases"].values() for r in case["rows"] for t in r["turns_ms"])


def test_a_run_goes_on_where_it_was(run, place):
    again = bench_report.Run(place.work)
    assert again.measured == run.measured
    assert set(again.missing()) == LEFT_OUT


def test_experts(run):
    """Candidates of one row and of many; llama.cpp's where it is installed."""
    one, many = (run.measured[name] for name in ("experts", "experts-256"))
    assert {"mxort-int8", "ort-qmoe", "read-mxfp4"} <= {row.peer for row in one.rows}
    assert one.missing["matmul-mxfp4"] == "fewer rows than experts"
    assert {"mxort-int8", "ort-qmoe", "matmul-mxfp4"} <= {row.peer for row in many.rows}
    assert {row.shape for row in (*one.rows, *many.rows)} == {"1x64x64", "256x64x64"}


def test_a_case_that_fails_is_reported_and_the_others_are_measured(run, place, monkeypatch, tmp_path):
    elsewhere = Place(tmp_path / "absent", tmp_path / "work")
    other = bench_report.Run(elsewhere.work)
    other.measure(["minilm", "overhead"], TINY, elsewhere)
    assert set(other.measured) == {"overhead"}
    assert "no such model (python samples/models.py minilm)" in other.why_not["minilm"]
    (verdict,) = (v for v in other.verdicts() if v.what.startswith("MiniLM") and v.ours == "level 3")
    assert (verdict.verdict, verdict.bound_by) == (NOT_MEASURED, other.why_not["minilm"])


def test_results_of_another_version(tmp_path):
    (tmp_path / bench_report.RESULTS).write_text('{"cases": {"small": {}}}')
    with pytest.raises(MxortError, match="not results of this version; remove it"):
        bench_report.Run(tmp_path)


def test_document(run, tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- measured -->\npreviously\n<!-- end measured -->\nafter\n")
    for _ in range(2):  # what was written is found again
        bench_report.write_document(document, bench_report.markdown(run))
    text = document.read_text()
    assert text.startswith("before\n<!-- measured -->\nMeasured by `make bench` on ")
    assert text.endswith("<!-- end measured -->\nafter\n")
    assert "previously" not in text
    assert text.count("\n## Bounds\n") == 1
    lines = [line for line in text.splitlines() if line.startswith("| M = 1, cold |")]
    assert len(lines) == sum(bound.case == "cold" for bound in BOUNDS)
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(tables) > 3
    for bad, reason in ((tmp_path / "absent.md", "cannot be read"), (tmp_path / "bare.md", "no markers")):
        (tmp_path / "bare.md").write_text("nothing")
        with pytest.raises(MxortError, match=reason):
            bench_report.write_document(bad, "text")


def test_unknown_case():
    with pytest.raises(MxortError, match="unknown case: got 'm2', expected one of m1-m16, "):
        bench_report.choose_cases(["m2"])


def test_pinning_of_two_threads_needs_two_cores(monkeypatch, place):
    monkeypatch.setattr(bench_cases, "pin", lambda threads: None)
    monkeypatch.setattr(bench_cases, "describe_machine", lambda: replace(describe_machine(), cores=1))
    with pytest.raises(MxortError, match="two threads need two cores"):
        CASES["threads"].run(TINY, place)
