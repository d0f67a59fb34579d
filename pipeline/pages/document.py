"""A self-contained HTML document: it loads nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from xml.etree.ElementTree import Element

from pipeline.pages.html import h

# Even if a corpus should find a way to ask for it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = Path(__file__).with_name("style.css")


def document(title: str, body: Element, *, style: str = "", script: str = "") -> Element:
    """The HTML document. `style` is laid over the report's own; the page allows `script`
    by its hash, and no other."""
    policy = _POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        body.append(h("script", script))
    head = h(
        "head",
        h("meta", {"charset": "utf-8"}),
        h("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        h("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        h("meta", {"name": "color-scheme", "content": "light dark"}),
        h("title", title),
        h("style", _STYLE.read_text("utf-8") + style),
    )
    return h("html", {"lang": "en"}, head, body)
