"""mxort/pages/page.py: what is missing is said before the work, and names stay text in pictures."""

from __future__ import annotations

import sys

import pytest

import mxort
from html_page import Page
from mxort.cli import shared
from mxort.pages import page

HOSTILE = ["<script>alert(1)</script>", "a & b", "-->", "]]>", "$x$", "$\\frac", "_hidden", "名前", "\"'"]


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_library_is_one_line_before_the_work(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(mxort.MxortError, match=r'pip install "mxort\[report\]"') as raised:
        shared.check_report_path(tmp_path / "r.html", ())
    assert "\n" not in str(raised.value)
    shared.check_report_path(tmp_path / "r.json", ())  # needs neither


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_pictures_stay_text(name, recwarn):
    def draw(figure):
        figure.subplots().set(title=name)

    made = page.picture(draw, 2.0)
    read = Page(made)
    assert name in {text for tag, text in read.text if tag == "text"}
    assert not read.all("script") and not recwarn.list


def test_a_users_matplotlib_settings_do_not_reach_a_picture():
    import matplotlib

    before = page.picture(lambda figure: figure.subplots(), 2.0)
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "red"}):
        assert page.picture(lambda figure: figure.subplots(), 2.0) == before
