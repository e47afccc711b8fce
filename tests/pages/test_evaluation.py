"""mxort/evaluation_html.py: one dot for each conversion, to scale, labelled, and nothing loaded from elsewhere."""

from __future__ import annotations

import itertools
import re

import pytest

from html_page import Page
from mxort.evaluation.evaluate import Evaluation
from mxort.pages.evaluation import render


def evaluation(name, size, **metrics):
    return Evaluation("m/model.onnx", name, "decoder", 8, 4088, metrics, 400_000_000, size)


def three():
    return [
        evaluation("a.onnx", 60_000_000, perplexity=25.0, perplexity_reference=10.0, kl=0.6),
        evaluation("b.onnx", 80_000_000, perplexity=15.0, perplexity_reference=10.0, kl=0.2),
        evaluation("c.onnx", 100_000_000, perplexity=12.0, perplexity_reference=10.0, kl=0.1),
    ]


def test_dots_are_to_scale():
    """60, 80, 100 MB lie at equal distances; 25, 15, 12 and the original at 10 on one scale, more being higher."""
    page = Page(render(three()))
    dots = [(float(d["cx"]), float(d["cy"])) for d in page.all("circle", "dot")]
    (line,) = page.all("line", "mean")
    x, y = zip(*dots, strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and x[1] > x[0]
    unit = (y[1] - y[0]) / 10
    assert y[2] - y[1] == pytest.approx(3 * unit, abs=0.2) and unit > 0
    assert float(line["y1"]) - y[2] == pytest.approx(2 * unit, abs=0.2)


def test_everything_is_named():
    page = Page(render(three()))
    texts = {text for tag, text in page.text if tag == "text"}
    assert {"a", "b", "c", "perplexity"} <= texts and any(t.endswith(" MB") for t in texts)
    (picture,) = page.all("svg")
    assert picture["role"] == "img" and picture["aria-labelledby"]
    described = next(text for tag, text in page.text if tag == "desc")
    assert described == "Original 10. a 25 at 60 MB; b 15 at 80 MB; c 12 at 100 MB."
    cells = [text for tag, text in page.text if tag == "td"]
    assert cells[:4] == ["a.onnx", "60 MB", "25.0000", "0.6000"]


def test_names_of_alike_conversions_do_not_lie_on_one_another():
    models = [evaluation(f"recipe-{i}.onnx", 50_000_000 + i, perplexity=10 + i / 100) for i in range(9)]
    page = Page(render(models))
    names = {f"recipe-{i}" for i in range(9)}
    texts = [a for t, a in page.elements if t == "text" and "text-anchor" in a and "class" not in a]
    places = sorted(float(a["y"]) for a in texts)
    assert len(places) == len(names)
    assert all(b - a >= 15.9 for a, b in itertools.pairwise(places))


def test_equal_file_names_are_told_apart():
    page = Page(
        render([evaluation(f"{n}/model.onnx", 10**6 * i, perplexity=9.0) for i, n in enumerate("xy", 1)])
    )
    assert {"x/model.onnx", "y/model.onnx"} <= {text for tag, text in page.text if tag == "text"}


@pytest.mark.parametrize(("kind", "metric"), [("embedding", "cosine"), ("classifier", "top1")])
def test_other_kinds(kind, metric):
    """One model alone, whose agreement with itself would be complete: the line stands at one, on the dot."""
    page = Page(render([Evaluation("r.onnx", "c.onnx", kind, 4, 4, {metric: 1.0}, 10, 5)]))
    (dot,) = page.all("circle", "dot")
    (line,) = page.all("line", "mean")
    assert dot["cy"] == line["y1"]


def test_names_cannot_become_markup():
    html = render([evaluation('<img src=x onerror="1">.onnx', 5, perplexity=3.0)])
    assert not Page(html).all("img") and "&lt;img" in html


def test_nothing_is_loaded_from_elsewhere():
    html = render(three())
    assert not re.search(r"(src|href)=|url\(|@import", html)
    assert set(re.findall(r"https?://[^\"\s]+", html)) <= {"http://www.w3.org/2000/svg"}
