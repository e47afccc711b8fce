"""``mxort bench serve --client guidellm``: that its report is read as it is meant, beside our own clients."""

from __future__ import annotations

import json

import pytest

from document import blocks, run
from mxort.cli import main
from serving import decoder_folder, serving


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    path = tmp_path_factory.mktemp("work")
    decoder_folder(path / "smollm2-mxfp4")
    return path


def test_the_block(work):
    (block,) = blocks("guidellm")
    assert "prompt 32, answer 8 tokens" in run(block, work)


def points(capsys, url, client, *arguments):
    load = ["--shapes", "24/12", "--scale", "1", "--concurrency", "1", "3", "--requests", "4"]
    status = main(["bench", "serve", url, "--client", client, *load, "--json", *arguments])
    return status, json.loads(capsys.readouterr().out)["points"]


def test_both_clients_see_the_same_requests(work, capsys):
    """The server counts: the prompts are the same, in number and length, and so are the answers."""
    with serving(work / "smollm2-mxfp4", key="secret") as (url, _):
        both = {client: points(capsys, url, client, "--api-key", "secret") for client in ("own", "guidellm")}
    for status, rows in both.values():
        assert status == 0
        assert [(each["concurrency"], each["requests"], each["errors"]) for each in rows] == [
            (1, 4, 0),
            (3, 12, 0),
        ]
    for ours, theirs in zip(both["own"][1], both["guidellm"][1], strict=True):
        assert ours["prompt_tokens"] == theirs["prompt_tokens"]
        assert ours["generated_tokens"] == theirs["generated_tokens"] == 12
        assert 0 < theirs["ttft_ms"]["p50"] <= theirs["latency_ms"]["p50"]
        assert theirs["tokens_per_s"] > 0
        assert ours["itl_ms"]
        assert theirs["itl_ms"] == {}


def test_errors_are_counted(work, capsys):
    """The probe of one token passes, and answers of twelve are more than the server gives."""
    with serving(work / "smollm2-mxfp4", max_tokens=8) as (url, _):
        status, rows = points(capsys, url, "guidellm")
    assert status == 1
    assert [(each["requests"], each["errors"]) for each in rows] == [(4, 4), (12, 12)]
    assert "400" in rows[0]["first_error"]
