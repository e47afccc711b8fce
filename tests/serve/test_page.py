"""The page, in a browser without a screen where there is one (Debian: apt install chromium)."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources

import httpx
import pytest

from serving import serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

DRIVER = """
<script>
// Says something as soon as the models are there, and again when the answers are.
const wait = (what) => new Promise((done) => { const look = () => (what() ? done() : setTimeout(look, 20)); look(); });
const said = (text) => { at("prompt").value = text; at("form").requestSubmit(); };
(async () => {
  await wait(() => columns.length === 2);
  at("most").value = 8;
  for (const text of ["first <b>thing</b>", "second"]) {
    said(text);
    await wait(() => !running);
  }
  document.body.dataset.turns = columns.map((column) => column.messages.length).join();
})();
</script>
"""


def test_it_needs_nothing_from_elsewhere(http):
    response = http.get("/")
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"(src|href)=[\"'](?!data:,)|https?:|@import|url\(", response.text)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_two_models_answer_side_by_side(folders, tmp_path, monkeypatch):
    """Two turns with both, by the page's own form; the second carries the first."""
    page = resources.files("mxort.serve").joinpath("page.html").read_text()
    monkeypatch.setattr("mxort.serve.app._page", lambda: page.replace("</body>", DRIVER + "</body>"))
    with serving(folders["tiny"], folders["float"], folders["encoder"]) as (url, _):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        command += ["--disable-dev-shm-usage", "--virtual-time-budget=20000", "--dump-dom", f"{url}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        counted = httpx.get(f"{url}/metrics").text
    dom = done.stdout
    assert 'data-turns="4,4"' in dom, done.stderr[-2000:]
    assert [re.sub("<.*?>", "", each) for each in re.findall("<h2>.*?</h2>", dom)] == ["tiny", "float"]
    assert dom.count("first &lt;b&gt;thing&lt;/b&gt;") == 2  # as text, not as markup
    speeds = re.findall(r'<p class="speed">(.*?)</p>', dom)
    assert len(speeds) == 4
    for speed in speeds:
        assert re.fullmatch(r"([\d.]+ tokens/s, )?first after [\d.]+ s, \d+ tokens", speed), speed
    assert 'mxort_requests_total{path="/v1/chat/completions",status="200"} 4.0' in counted
