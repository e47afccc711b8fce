"""mxort/report_html.py: complete, self-contained, escaped, and pictures that are to scale."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mxort
from html_page import Page
from mxort.conversion.recipe import Recipe
from mxort.conversion.report import CONVERTED, SKIPPED, Report, SiteReport
from mxort.pages import report as report_html
from mxort.pages.report import nice_ticks, render
from tiny_models import mlp


def site(node, sqnr=18.0, **fields):
    values = {"K": 64, "N": 64, "weight": node, "original_bytes": 16384, "converted_bytes": 2176}
    return SiteReport(node, "MatMul", CONVERTED, sqnr_db=sqnr, **values | fields)


def report(*sites, **fields):
    values = {
        "original_bytes": 100_000,
        "converted_bytes": 40_000,
        "seconds": 1.5,
        "peak_rss_bytes": 5_000_000,
    }
    return Report("in/model.onnx", "out.onnx", Recipe(), sites=sites, **values | fields)


def test_a_real_conversion(tmp_path):
    made = mxort.convert(mlp(tmp_path / "m.onnx"), tmp_path / "out.onnx", exclude=("fc2",))
    text = render(made)
    page = Page(text)
    words = " ".join(data for _, data in page.text)
    for wanted in ("m.onnx to MXFP4", "1 of 2", "nodes converted", "fc1", "fc2", "excluded by pattern 'fc2'"):
        assert wanted in words
    assert made.source_sha256 in words
    for name, value, about in made.recipe.describe():
        assert name in words
        assert value in words
        assert about in words


def test_nothing_is_loaded_from_elsewhere():
    text = render(report(site("a"), site("b")))
    assert set(re.findall(r"\w+://[^\"' ]*", text)) <= {
        "http://www.w3.org/2000/svg"
    }  # the name of SVG, not a link
    page = Page(text)
    for _, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "data", "action", "poster"}
    assert "@import" not in text
    assert "url(" not in text
    assert not page.all("link")


HOSTILE = "</td><script>alert('x')</script>\"&[/bold]"


def test_names_from_the_model_cannot_become_markup():
    hostile = [
        site(HOSTILE, note=HOSTILE, weight=HOSTILE),
        SiteReport(HOSTILE, HOSTILE, SKIPPED, reason=HOSTILE),
    ]
    values = dataclasses.asdict(report()) | {"recipe": Recipe(exclude=(HOSTILE,)), "warnings": (HOSTILE,)}
    made = Report(**values | {"source": HOSTILE, "output": HOSTILE, "sites": tuple(hostile)})
    page = Page(render(made))
    assert len(page.all("script")) == 1  # ours
    assert sum(data == HOSTILE for tag, data in page.text if tag == "td") >= 4


def test_every_site_is_a_row_with_its_numbers():
    rows = [
        site("exact", math.inf),
        site("good", 20.126, note="bias folded"),
        SiteReport("left", "Gemm", SKIPPED, "no operand is constant"),
    ]
    page = Page(render(report(*rows)))
    cells = [data for tag, data in page.text if tag == "td"]
    assert "20.13" in cells
    assert "exact" in cells
    assert "no operand is constant" in cells
    numbers = [a["data-value"] for a in page.all("td", "number")]
    assert numbers[4::5] == ["inf", "20.126", "-1"]
    assert "1 weights are exact" in render(report(*rows))


def test_size_bars_are_to_scale():
    """100 kB with 32,768 B of converted weights become 40 kB with 4,352 B of them."""
    page = Page(render(report(site("a"), site("b"))))
    weight, rest = ([float(a["width"]) for a in page.all("rect", css)] for css in ("weight", "rest"))
    full = weight[0] + rest[0]
    assert weight[0] / full == pytest.approx(32768 / 100_000, abs=2e-3)
    assert weight[1] / full == pytest.approx(4352 / 100_000, abs=2e-3)
    assert (weight[1] + rest[1]) / full == pytest.approx(40_000 / 100_000, abs=2e-3)


def test_a_shared_weight_counts_once():
    shared = report(site("a", weight="w"), site("b", weight="w", converted_bytes=0))
    assert report_html._converted_weight_bytes(shared) == (16384, 2176)


def test_dots_are_to_scale():
    page = Page(render(report(site("a", 18.0), site("b", 19.0), site("c", 20.0), site("exact", math.inf))))
    y = [float(a["cy"]) for a in page.all("circle", "dot")]
    assert len(y) == 3
    assert y[0] > y[1] > y[2]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.15)


def test_pictures_and_headings_are_labelled():
    page = Page(render(report(site("a"), site("b", 19.0))))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    pictures = page.all("svg")
    assert len(pictures) == 2
    for picture in pictures:
        assert picture["role"] == "img"
        assert set(picture["aria-labelledby"].split()) <= ids
    assert all("aria-sort" in a for a in page.all("th", "text") + page.all("th", "number"))
    assert sum(tag == "button" for tag, _ in page.elements) == 10
    assert page.elements[0] == ("html", {"lang": "en"})


@pytest.mark.parametrize(
    "made",
    [
        report(),
        report(site("only", math.inf)),
        report(site("one")),
        report(SiteReport("a", "MatMul", SKIPPED, "r"), converted_bytes=100_000),
        report(site("a"), converted_bytes=0),
        report(site("a"), site("b"), original_bytes=0),
    ],
    ids=["no sites", "exact only", "one", "nothing converted", "no size", "no original size"],
)
def test_unusual_reports_render(made):
    text = render(made)
    Page(text)
    assert "Infinity" not in text.replace("? Infinity :", "")


def test_without_warnings_there_is_no_such_section():
    assert ">Warnings<" not in render(report(site("a")))
    assert ">Warnings<" in render(report(site("a"), warnings=("careful",)))


numbers = st.floats(-1e6, 1e6)


@given(numbers, numbers)
def test_ticks_are_few_and_enclose_the_values(a, b):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 8


def test_ticks_by_hand():
    assert nice_ticks(16.8, 19.3) == [16, 17, 18, 19, 20] or nice_ticks(16.8, 19.3) == [
        16.5,
        17,
        17.5,
        18,
        18.5,
        19,
        19.5,
    ]
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert len(nice_ticks(5, 5)) >= 2
