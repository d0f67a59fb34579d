"""The page "API reference": the public names of the package boxless, documented by mkdocstrings."""

from __future__ import annotations

import boxless

_INTRO = """# API reference

All of it is imported from `boxless`. [Python API](../python.md) shows each name in a few lines.
"""


def api_reference() -> str:
    """The page as Markdown: an mkdocstrings directive a public name, by its defining module."""
    parts = [_INTRO]
    for name in boxless.__all__:
        module, attribute = boxless._PLACES[name]
        parts.append(
            f"::: {module}.{attribute}\n"
            "    options:\n"
            "      show_root_heading: true\n"
            f"      heading: boxless.{name}\n"
            f"      toc_label: {name}\n"
            "      heading_level: 2\n"
        )
    return "\n".join(parts)
