"""The report as data, JSON and text."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from mxort.conversion.recipe import PRESETS
from mxort.conversion.report import Report, SiteReport
from mxort.errors import MxortError
from mxort.text import format_bytes, format_sqnr

GOOD = SiteReport(
    "enc.0/MatMul",
    "MatMul",
    "converted",
    K=64,
    N=32,
    weight="w",
    original_bytes=8192,
    converted_bytes=1088,
    sqnr_db=19.0,
)
REPORT = Report(
    source="in.onnx",
    output="out.onnx",
    recipe=PRESETS["w4a8"],
    original_bytes=2_000_000,
    converted_bytes=500_000,
    seconds=1.25,
    peak_rss_bytes=123_000_000,
    sites=(
        GOOD,
        replace(GOOD, node="enc.1/MatMul", sqnr_db=17.0),
        replace(GOOD, node="exact", sqnr_db=math.inf, K=128),
        SiteReport("att.0", "MatMul", "skipped", "no operand is constant"),
        SiteReport("att.1", "MatMul", "skipped", "no operand is constant"),
        SiteReport("[red]odd[/red]", "Conv", "skipped", "Conv has no MXFP4 operator"),
    ),
    mxort_version="1.2.3",
    source_sha256="ab" * 32,
    opset=17,
    ir_version=10,
    warnings=("careful",),
)


def text_of(report: Report, **options) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    report.print(console, **options)
    return console.export_text()


def test_split():
    assert [s.node for s in REPORT.converted] == ["enc.0/MatMul", "enc.1/MatMul", "exact"]
    assert [s.node for s in REPORT.skipped] == ["att.0", "att.1", "[red]odd[/red]"]
    assert REPORT.mean_sqnr_db == 18.0
    assert replace(REPORT, sites=REPORT.skipped).mean_sqnr_db is None


def test_json_round_trip():
    text = REPORT.to_json()
    assert Report.from_json(text) == REPORT
    values = json.loads(text, parse_constant=pytest.fail)  # infinity is no JSON
    assert values["sites"][2]["sqnr_db"] == "inf"
    assert values["recipe"]["activation_format"] == "mxfp8_e4m3"
    assert "model" not in values


def test_what_is_no_number_is_null_in_json():
    rows = (replace(GOOD, sqnr_db=math.nan), replace(GOOD, sqnr_db=-math.inf))
    text = replace(REPORT, sites=rows, seconds=math.nan).to_json()
    values = json.loads(text, parse_constant=pytest.fail)
    assert [row["sqnr_db"] for row in values["sites"]] == [None, None]
    assert values["seconds"] is None
    assert [row.sqnr_db for row in Report.from_json(text).sites] == [None, None]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sites": [{}]}', '{"sites": 3}', '{"sites": [], "recipe": {}}', "7"]
)
def test_not_a_report(text):
    with pytest.raises(MxortError, match="not a report of mxort"):
        Report.from_json(text)


def test_text():
    text = text_of(REPORT)
    assert "17.00 to 19.00" in text, "nodes of one shape share a row"
    assert "exact" in text
    (row,) = [line for line in text.splitlines() if "no operand is constant" in line]
    assert "2" in row and "att.0" in row
    assert "[red]odd[/red]" in text, "names are no markup"
    assert "warning: careful" in text
    assert "2 MB -> 500 kB (4.00x)" in text
    assert "3 nodes converted, 3 skipped, 3.19 bits per weight, mean weight SQNR 18.00 dB" in text


def test_text_of_every_node():
    text = text_of(REPORT, every_node=True)
    assert all(site.node in text for site in REPORT.converted)


def test_text_without_rows():
    text = text_of(replace(REPORT, sites=(), converted_bytes=0))
    assert "0 nodes converted, 0 skipped" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (69_060_623, "69.1 MB"),
        (2 * 10**12, "2 TB"),
    ],
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


def test_format_sqnr():
    assert [format_sqnr(v) for v in (None, math.inf, 18.926)] == ["-", "exact", "18.93"]
