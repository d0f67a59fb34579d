"""Pages of the site that are files in the root of the project: README, CONTRIBUTING, CHANGELOG."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NAMES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def root_page(name: str) -> str:
    """The Markdown of a file in the root, with links that fit its place in the site.

    Links into docs/ lose that folder, links between files of the root go to their pages.
    """
    text = (ROOT / name).read_text("utf-8")
    text = re.sub(r"(\]\()docs/", r"\1", text)
    for file, page in _NAMES.items():
        text = re.sub(rf"(\]\(){re.escape(file)}", rf"\1{page}", text)
    return text
