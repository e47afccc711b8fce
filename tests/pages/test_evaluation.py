"""mxort/pages/evaluation.py: every conversion is drawn, named and listed, and nothing loaded from elsewhere."""

from __future__ import annotations

import pytest

from html_page import Page
from mxort.evaluation.evaluate import Evaluation
from mxort.pages.evaluation import render


def evaluation(name, size, **metrics):
    return Evaluation("m/model.onnx", name, "decoder", 8, 4088, metrics, 400_000_000, size)


def three():
    return [
        evaluation("c.onnx", 100_000_000, perplexity=12.0, perplexity_reference=10.0, kl=0.1),
        evaluation("a.onnx", 60_000_000, perplexity=25.0, perplexity_reference=10.0, kl=0.6),
        evaluation("b.onnx", 80_000_000, perplexity=15.0, perplexity_reference=10.0, kl=0.2),
    ]


def texts(page, tag):
    return [text for where, text in page.text if where == tag]


def test_every_conversion_is_named_in_the_picture_and_listed_by_size():
    page = Page(render(three()))
    assert {"1: a.onnx", "2: b.onnx", "3: c.onnx", "original", "perplexity"} <= {*texts(page, "text")}
    cells = texts(page, "td")
    assert cells[:10] == [
        "1",
        "a.onnx",
        "60 MB",
        "25.0000",
        "0.6000",
        "2",
        "b.onnx",
        "80 MB",
        "15.0000",
        "0.2000",
    ]
    assert cells[10:] == ["3", "c.onnx", "100 MB", "12.0000", "0.1000"]
    assert "4088 predictions" in " ".join(texts(page, "figcaption"))
    assert "Dashed: the original, 10." in " ".join(texts(page, "figcaption"))


def test_many_conversions_with_long_names_are_all_named():
    names = [f"{'folder/' * 20}recipe-{i}.onnx" for i in range(25)]
    page = Page(render([evaluation(n, 50_000_000 + i, perplexity=10.0) for i, n in enumerate(names)]))
    legend = [text for text in texts(page, "text") if "recipe-" in text]
    assert [text.rsplit("/", 1)[1] for text in legend] == [f"recipe-{i}.onnx" for i in range(25)]
    assert [text for text in texts(page, "td") if "recipe-" in text] == names


@pytest.mark.parametrize(("kind", "metric"), [("embedding", "cosine"), ("classifier", "top1")])
def test_other_kinds(kind, metric):
    """One model alone, whose agreement with itself is complete."""
    page = Page(render([Evaluation("r.onnx", "c.onnx", kind, 4, 4, {metric: 0.5}, 10, 5)]))
    assert metric in texts(page, "text") and "Dashed: the original, 1." in " ".join(texts(page, "figcaption"))


def test_names_cannot_become_markup():
    hostile = '<img src=x onerror="1">.onnx'
    page = Page(render([evaluation(hostile, 5, perplexity=3.0)]))
    assert not page.all("img")
    assert hostile in texts(page, "td") and f"1: {hostile}" in texts(page, "text")


def test_nothing_is_loaded_from_elsewhere():
    Page(render(three())).assert_alone()
