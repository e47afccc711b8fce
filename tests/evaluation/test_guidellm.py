"""guidellm's clients: its report as figures, and a program that is missing or fails. With itself: tests/pipelines."""

from __future__ import annotations

import json

import pytest

from mxort.cli import main
from mxort.errors import MxortError
from mxort.evaluation.guidellm import read_report
from mxort.evaluation.serve_bench import Load, summarize


def request(start, first, last, end, prompt=4, tokens=5, error=None):
    """A request as a report of version 0.8 has it, what is not read left out."""
    times = {
        "request_start": start,
        "first_token_iteration": first,
        "last_token_iteration": last,
        "request_end": end,
        "resolve_start": start,
        "resolve_end": end,
    }
    return {
        "info": {"timings": times, "error": error},
        "input_metrics": {"text_tokens": prompt},
        "output_metrics": {"text_tokens": tokens},
    }


def report(good, bad=()):
    return json.dumps(
        {"benchmarks": [{"requests": {"successful": good, "errored": list(bad), "incomplete": []}}]}
    )


def test_a_report_as_figures():
    """By hand: TPOT 0.4 s / 4 and 0.2 s / 4, two seconds in all."""
    good = [request(10.0, 10.5, 10.9, 11.0), request(10.5, 10.6, 10.8, 12.0)]
    failed = request(10.1, None, None, 10.2, error="status\n500")
    failed["info"]["timings"]["request_start"] = None
    seen = read_report(report(good, [failed]).encode())
    point = summarize("a", (4, 5), 2, seen, Load(tpot_limit_ms=60))
    assert (point.requests, point.errors, point.first_error) == (3, 1, "status 500")
    assert (point.prompt_tokens, point.generated_tokens) == (4, 5)
    assert (point.seconds, point.tokens_per_s, point.goodput_per_s) == pytest.approx((2.0, 5.0, 0.5))
    assert point.ttft_ms["p50"] == pytest.approx(300)
    assert point.tpot_ms["p50"] == pytest.approx(75)
    assert point.itl_ms == {}


def test_tokens_that_are_no_text_and_none_at_all():
    first, second = read_report(
        report([request(1.0, None, None, 2.0), request(1.0, 1.5, 2, 2, tokens=None)]).encode()
    )
    assert (first.first, first.each, first.error) == (1.0, 0.0, "")
    assert second.error == "an answer without usage"


@pytest.mark.parametrize("text", ["", "[]", '{"benchmarks": []}', report([{"info": {}}]), report([None])])
def test_a_report_of_another_form(text):
    with pytest.raises(MxortError, match=r"not of version 0\.8"):
        read_report(text.encode())


def refused(capsys, url):
    assert main(["bench", "serve", url, "--client", "guidellm"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_where_it_is_not_installed(capsys, monkeypatch, tmp_path):
    """Said before a server is looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert "guidellm is not installed: expected its program on PATH" in refused(capsys, "http://127.0.0.1:9")
