"""Figures of servers under load, and the way there: a server of our own, and one that fails."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import mxort
from html_page import Page
from mxort.cli import main
from mxort.errors import MxortError
from mxort.evaluation.load import Seen
from mxort.evaluation.serve_bench import Load, bench_servers, summarize
from serving import decoder_folder, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    mxort.convert_folder(decoder_folder(path / "float"), path / "tiny")
    return path / "tiny"


def test_the_figures():
    """Two requests that overlap, and one that failed: by hand."""
    seen = [
        Seen(10.0, (0.5, 0.6, 0.8), 10.8, 7, 3),  # TPOT 150 ms
        Seen(10.2, (0.1, 0.2, 0.2), 12.0, 9, 5),  # TPOT 25 ms: two pieces held more than one token
        Seen(10.3, (), 10.4, 0, 0, "status 500"),
    ]
    point = summarize("a", (8, 4), 2, seen, Load(price=3.6), (3.0, 1.0), 5)
    assert (point.requests, point.errors, point.first_error) == (3, 1, "status 500")
    assert (point.seconds, point.tokens_per_s, point.total_tokens_per_s) == pytest.approx((2.0, 4.0, 12.0))
    assert (point.requests_per_s, point.goodput_per_s) == pytest.approx((1.0, 0.5))
    assert (point.prompt_tokens, point.generated_tokens) == (8, 4)
    assert point.ttft_ms["p50"] == pytest.approx(300)
    assert point.tpot_ms["p50"] == pytest.approx((150 + 25) / 2)
    assert point.itl_ms["p50"] == pytest.approx(100)  # of 0, 100, 100, 200
    assert point.latency_ms["p99"] == pytest.approx(800 + 0.99 * 1000)
    assert point.tokens_per_joule == pytest.approx(2)
    assert point.cost_per_million == pytest.approx(3.6 / 3600 * 2 / 8 * 1e6)


def test_nothing_but_errors():
    point = summarize("a", (8, 4), 1, [Seen(0.0, (), 1.0, 0, 0, "no")], Load(price=1))
    assert (point.errors, point.tokens_per_s, point.ttft_ms, point.cost_per_million) == (1, 0, {}, None)


def test_a_server_and_a_folder_side_by_side(folder, tmp_path, capsys):
    """The tiny model's letters are a token each: lengths come out as asked for."""
    report = tmp_path / "page.html"
    with serving(folder) as (url, _):
        arguments = [
            "bench",
            "serve",
            f"{url}/v1",
            str(folder),
            "--concurrency",
            "2",
            "1",
            "--shapes",
            "48/24",
        ]
        arguments += ["--scale", "0.5", "--requests", "3", "--json", "--report", str(report)]
        assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["targets"] == ["tiny 1", "tiny 2"]
    order = [(point["concurrency"], point["target"]) for point in result["points"]]
    assert order == [(1, "tiny 1"), (1, "tiny 2"), (2, "tiny 1"), (2, "tiny 2")]
    for point in result["points"]:
        assert (point["errors"], point["requests"]) == (0, 3 * point["concurrency"])
        assert point["shape"] == [24, 12]
        assert point["generated_tokens"] == 12
        assert 16 <= point["prompt_tokens"] <= 32  # words are of several lengths
        assert 0 < point["ttft_ms"]["p50"] <= point["latency_ms"]["p50"]
        assert point["memory_bytes"] > 1e7
        assert point["tokens_per_s"] > 0
    page = Page(report.read_text())
    texts = [text for where, text in page.text if where == "text"]
    assert {"tiny 1", "tiny 2"} <= set(texts)
    assert len([text for where, text in page.text if where == "td" and text.startswith("tiny")]) == 4


def test_the_table(folder, capsys):
    arguments = ["bench", "serve", str(folder), "--concurrency", "1", "--shapes", "8/4", "--scale", "1"]
    assert main([*arguments, "--requests", "1", "--price", "2"]) == 0
    out = capsys.readouterr().out
    assert "prompt 8, answer 4 tokens" in out
    assert "tiny" in out


@contextlib.contextmanager
def other_server(models, completions):
    """A server that answers with these bytes: (address)."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, content):
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            self.answer(200, models)

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(*completions.pop(0) if len(completions) > 1 else completions[0])

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


MODELS = b'{"data": [{"id": "m"}]}'
PIECE = (
    b'data: {"choices": [{"text": "a"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 1}}\n\ndata: [DONE]\n\n'
)


def test_failures_are_counted_and_told(capsys):
    answers = [(200, PIECE)] * 2 + [
        (200, PIECE),
        (429, b'{"error": {"message": "too many"}}'),
        (500, b"<html>"),
    ]
    answers += [(200, b"data: {\n\n"), (200, b'data: {"error": {"message": "broke"}}\n\n'), (200, b"")]
    with other_server(MODELS, answers) as url:
        arguments = [
            "bench",
            "serve",
            url,
            "--concurrency",
            "1",
            "--requests",
            "6",
            "--shapes",
            "8/4",
            "--json",
        ]
        assert main(arguments) == 1
    out, err = capsys.readouterr()
    (point,) = json.loads(out)["points"]
    assert (point["requests"], point["errors"], point["memory_bytes"]) == (6, 5, None)
    assert "5 of 6 failed: 429: too many" in err


@pytest.mark.parametrize(
    ("models", "said"),
    [(b"<html>", "not a server of OpenAI"), (b'{"data": []}', "no language model"), (b"[]", "not a server")],
)
def test_what_is_no_server(models, said):
    with other_server(models, [(200, PIECE)]) as url, pytest.raises(MxortError, match=said):
        bench_servers([url], Load())


def test_what_cannot_be_served_or_reached(tmp_path, capsys):
    for target in (str(tmp_path), "http://127.0.0.1:9"):
        assert main(["bench", "serve", target]) == 2
        assert capsys.readouterr().err.count("\n") == 1
