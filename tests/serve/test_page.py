"""The page, in a browser without a screen where there is one (Debian: apt install chromium)."""

from __future__ import annotations

import re
import shutil
import time

import httpx
import pytest
from playwright.sync_api import sync_playwright

from mxort.serve.lanes import EngineLane
from serving import LETTERS, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_it_needs_nothing_from_elsewhere(http):
    response = http.get("/")
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"(src|href)=[\"'](?!data:,)|https?:|@import|url\(", response.text)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with sync_playwright() as library:
        running = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_default_timeout(20_000)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    # Chromium's own word on an answer of 400 or 401 is no complaint about the page.
    assert [text for text in complaints if "status of 4" not in text] == []


def say(page, text):
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector("#send:not(:disabled)", state="attached")


def test_two_models_answer_side_by_side(folders, page):
    """Two turns with both; an encoder is offered to nobody."""
    with serving(folders["tiny"], folders["float"], folders["encoder"]) as (url, _):
        page.goto(url)
        page.wait_for_selector("section h2")
        assert page.locator("section h2").all_inner_texts() == ["tiny", "float"]
        page.fill("#most", "6")
        for text in ("<b>a</b>", "b"):
            say(page, text)
        for column in page.locator("section").all():
            said = column.locator(".said").all_text_contents()
            assert said[0::2] == ["<b>a</b>", "b"]  # as text, not as markup
            assert len(said) == 4
            for speed in column.locator(".speed").all_inner_texts():
                assert re.fullmatch(r"([\d.]+ tokens/s, )?first after [\d.]+ s, \d tokens", speed), speed
        page.click("#fresh")
        assert page.locator(".said").count() == 0


def test_errors_are_told(folders, page):
    with serving(folders["float"]) as (url, backends):
        page.goto(url)
        page.wait_for_selector("section h2")
        page.fill("#most", "9999")
        say(page, "a")
        assert page.locator(".speed").last.inner_text().startswith("max_tokens: 9999, above 1024")
        assert backends["float"].counts() == (0, 0)


def test_an_answer_can_be_stopped(folders, page, monkeypatch):
    with serving(folders["float"]) as (url, backends):
        prompt = next(letter for letter in LETTERS if len(answer(url, letter)) > 8)
        step = EngineLane.step
        monkeypatch.setattr(EngineLane, "step", lambda lane: time.sleep(0.2) or step(lane))
        page.goto(url)
        page.wait_for_selector("section h2")
        page.fill("#most", "40")
        page.fill("#prompt", prompt)
        page.click("#send")
        page.wait_for_selector(".said:not(.user):not(:empty)")
        page.click("#stop")
        page.wait_for_selector("#send:not(:disabled)", state="attached")
        assert page.locator(".speed").last.inner_text() == "stopped"
        end = time.monotonic() + 10
        while backends["float"].counts() != (0, 0):
            assert time.monotonic() < end


def answer(url, prompt):
    body = {"model": "float", "messages": [{"role": "user", "content": prompt}], "max_tokens": 20}
    return httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]


def test_a_key_is_asked_for(folders, page):
    with serving(folders["float"], key="secret") as (url, _):
        page.goto(url)
        page.wait_for_selector("#note:has-text('API key')")
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.wait_for_selector("section h2")
