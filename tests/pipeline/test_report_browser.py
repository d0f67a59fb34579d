"""The report in headless Chromium, at the width of a phone and of a desktop. Oracle: the browser's
own layout and its console. Skipped where no Chromium is installed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_runs import whole_run

from pipeline.report.page import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr"
).split()
# A window of a browser cannot be as narrow as a phone, a frame in it can. The page's own policy
# forbids scripts, so it is looked at from outside.
OUTSIDE = """<!doctype html>
<iframe id="page" width="{width}" height="800" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
  const page = document.getElementById("page").contentDocument;
  const pictures = [...page.querySelectorAll("img")];
  pictures.forEach(picture => picture.loading = "eager");
  const decoded = pictures.map(picture => picture.decode().then(() => true, () => false));
  Promise.all(decoded).then(all => {{
    const root = page.documentElement, found = document.createElement("pre");
    found.id = "found";
    found.textContent = JSON.stringify({{
      wide: root.scrollWidth - root.clientWidth,
      outside: [...page.querySelectorAll("main *")].filter(e => !e.closest(".scrolls, pre, svg")
        && e.getBoundingClientRect().right > root.clientWidth + 1)
        .map(e => e.outerHTML.slice(0, 90)),
      undecoded: all.filter(good => !good).length, pictures: all.length,
      sections: page.querySelectorAll("section").length,
      scripts: page.scripts.length,
      ground: page.defaultView.getComputedStyle(page.body).backgroundColor
    }});
    document.body.append(found);
  }});
}});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width, is_dark", [(390, False), (390, True), (1280, False)])
def test_page_fits_and_loads_without_a_complaint(
    tmp_path: Path, width: int, is_dark: bool
) -> None:
    page = write_report(whole_run(tmp_path / "run")).read_text("utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(OUTSIDE.format(width=width, page=html.escape(page)), "utf-8")
    colours = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    # Decoding pictures takes real time, which the budget does not count: on a busy machine the page
    # may be asked too early, and is then asked again with more.
    for budget in (5_000, 50_000, 500_000, 5_000_000):
        done = subprocess.run(
            [str(CHROMIUM), *FLAGS, *colours, f"--user-data-dir={tmp_path / 'profile'}",
             f"--virtual-time-budget={budget}", "--dump-dom", frame.as_uri()],
            capture_output=True, text=True, timeout=60, check=True,
        )
        match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        if match:
            break
    assert match, done.stderr[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert found["wide"] <= 0 and found["outside"] == []
    assert found["pictures"] > 5 and found["undecoded"] == 0
    assert found["sections"] == 10 and found["scripts"] == 0
    assert found["ground"] == ("rgb(18, 19, 24)" if is_dark else "rgb(247, 247, 245)")
    assert "CONSOLE" not in done.stderr
