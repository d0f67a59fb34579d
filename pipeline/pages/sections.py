"""Building blocks of pages: sections, captioned figures, formatted numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from pipeline.pages.html import Part, h


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: `name` is its anchor, `title` its heading and its entry in the menu."""

    name: str
    title: str
    content: tuple[Element, ...]

    def element(self) -> Element:
        """The section as HTML."""
        heading = h("h2", {"id": f"{self.name}-title"}, self.title)
        attributes = {"id": self.name, "aria-labelledby": f"{self.name}-title"}
        return h("section", attributes, heading, *self.content)


def missing(text: str) -> Element:
    """A word on something that is not there."""
    return h("p", {"class": "missing"}, text)


def figure_list(figures: Iterable[tuple[str, str]]) -> Element:
    """Names and values in a row, for figures that need no chart."""
    pairs = (h("div", h("dt", name), h("dd", value)) for name, value in figures)
    return h("dl", {"class": "figures"}, *pairs)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Part]]) -> Element:
    """A table whose first column names the rows; it scrolls by itself where it is too wide."""
    cells = [h("th", {"scope": "col"}, text) for text in head]
    body = [
        h("tr", h("th", {"scope": "row"}, row[0]), *(h("td", cell) for cell in row[1:]))
        for row in rows
    ]
    whole = h(
        "table",
        h("caption", {"class": "unseen"}, caption),
        h("thead", h("tr", *cells)),
        h("tbody", *body),
    )
    attributes = {"class": "scrolls", "tabindex": "0", "role": "region", "aria-label": caption}
    return h("div", attributes, whole)


def percent(share: float) -> str:
    """0.605 -> "60.5 %", with a space that does not break."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def count(number: int) -> str:
    """2256 -> "2,256"."""
    return f"{number:,}"


def short(value: float) -> str:
    """Three significant digits: 0.331945 -> "0.332", 11.71 -> "11.7"."""
    return f"{value:.3g}"
