"""A page in headless Chromium, at the width of a phone or of a desktop, and what it measures
there."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --enable-logging=stderr"
).split()
# A window of a browser cannot be as narrow as a phone, a frame in it can. The page's own policy
# forbids scripts, so it is looked at from outside.
_OUTSIDE = """<!doctype html>
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
      ground: page.defaultView.getComputedStyle(page.body).backgroundColor,
      asked: ({asked})(page)
    }});
    document.body.append(found);
  }});
}});</script>"""


def measure(
    page: str, folder: Path, *, width: int, is_dark: bool = False, asked: str = "page => null"
) -> tuple[dict[str, Any], str]:
    """What the browser finds in a page, and what it wrote to its log; temporary files in `folder`.

    asked: a function of JavaScript from the page's document to what else is to be known of it.
    """
    frame = folder / "frame.html"
    text = _OUTSIDE.format(width=width, page=html.escape(page), asked=asked)
    frame.write_text(text, "utf-8")
    colours = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    # Decoding pictures takes real time, which the budget does not count: on a busy machine the page
    # may be asked too early, and is then asked again with more.
    for budget in (5_000, 50_000, 500_000, 5_000_000):
        done = subprocess.run(
            [
                str(CHROMIUM),
                *_FLAGS,
                *colours,
                f"--user-data-dir={folder / 'profile'}",
                f"--virtual-time-budget={budget}",
                "--dump-dom",
                frame.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        if match:
            return json.loads(html.unescape(match[1])), done.stderr
    raise AssertionError(done.stderr[-2000:])
