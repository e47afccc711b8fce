"""mxort/pages/report.py: complete, self-contained, escaped."""

from __future__ import annotations

import dataclasses
import math

import pytest

import mxort
from html_page import Page
from model_folders import optimum_folder
from mxort.conversion.gains import Gain
from mxort.conversion.recipe import Recipe
from mxort.conversion.report import CONVERTED, SKIPPED, Report, SiteReport
from mxort.pages import report as report_html
from mxort.pages.report import render, render_folder
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
    Page(render(report(site("a"), site("b")))).assert_alone()


HOSTILE = "</td><script>alert('x')</script>\"&[/bold]"


def test_names_from_the_model_cannot_become_markup():
    hostile = [
        site(HOSTILE, note=HOSTILE, weight=HOSTILE),
        SiteReport(HOSTILE, HOSTILE, SKIPPED, reason=HOSTILE),
    ]
    values = dataclasses.asdict(report()) | {"recipe": Recipe(exclude=(HOSTILE,)), "warnings": (HOSTILE,)}
    made = Report(**values | {"source": HOSTILE, "output": HOSTILE, "sites": tuple(hostile)})
    page = Page(render(made))
    assert not page.all("script")
    # of two nodes the name and the remark, one operator, and the pattern of the recipe
    assert sum(data == HOSTILE for tag, data in page.text if tag == "td") == 6
    assert any(data == HOSTILE for tag, data in page.text if tag == "li")


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
    assert cells.count("exact") == 2  # a name and an SQNR
    assert len(page.all("td", "number")) == 18
    assert cells.count("5.4%") == 2  # of 40 kB
    assert "Exact, and not drawn: 1." in render(report(*rows))


def test_what_stays_and_what_options_would_gain():
    rope = SiteReport("rope", "Slice", SKIPPED, "reads a constant", original_bytes=10_000)
    gains = (Gain({"convert_embedding": True, "table_format": "mxfp4"}, 25_000),)
    page = Page(render(report(site("a", gain_db=4.5), rope, gains=gains)))
    cells = [data for tag, data in page.text if tag == "td"]
    assert {"rope", "25.0%", "4.50"} <= set(cells)
    caption = " ".join(" ".join(data for tag, data in page.text if tag == "figcaption").split())
    assert "With --convert-embedding --table-format mxfp4: about 25 kB instead of 40 kB." in caption


def test_the_caption_has_the_sizes_and_the_lowest():
    """100 kB with 32,768 B of converted weights become 40 kB with 4,352 B of them."""
    page = Page(render(report(site("a", 19.0), site("b", 18.25))))
    caption = " ".join(" ".join(data for tag, data in page.text if tag == "figcaption").split())
    assert (
        "100 kB before, of which 32.8 kB are weights that were converted; 40 kB after, of which 4.35 kB."
        in caption
    )
    assert "2 weights in dB" in caption and "mean, 18.62 dB. Lowest: 18.25 dB at b." in caption


def test_a_shared_weight_counts_once():
    shared = report(site("a", weight="w"), site("b", weight="w", converted_bytes=0))
    assert report_html._converted_weight_bytes(shared) == (16384, 2176)


def test_the_picture_is_named_and_drawn():
    page = Page(render(report(site("a"), site("b", 19.0))))
    assert len(page.all("svg")) == 1 and len(page.all("figcaption")) == 1
    texts = {data for tag, data in page.text if tag == "text"}
    assert {"before", "after", "SQNR, dB", "weights that were converted", "everything else"} <= texts
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len({*ids})
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
    Page(render(made)).assert_alone()


def test_without_warnings_there_is_no_such_section():
    assert ">Warnings<" not in render(report(site("a")))
    assert ">Warnings<" in render(report(site("a"), warnings=("careful",)))


def test_a_folder_of_models(tmp_path):
    """A table, then each model's own page, whose pictures do not share names."""
    source = optimum_folder(tmp_path / "in")
    mlp(source / "onnx" / "<b>.onnx", seed=2)
    made = mxort.convert_folder(source, tmp_path / "out")
    page = Page(render_folder(made))
    page.assert_alone()
    words = " ".join(data for _, data in page.text)
    for wanted in (
        "in to MXFP4",
        "2 of 3 models converted",
        "another form of model.onnx",
        "<b>.onnx to MXFP4",
    ):
        assert wanted in words
    assert words.count("model.onnx to MXFP4") == 1
    assert len(page.all("svg")) == 2
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names)) > 0
