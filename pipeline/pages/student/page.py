"""The page of `boxless inspect`: one file that needs no network.

Pointing at a word, or reaching it by keyboard, lights the cells that it attends to and those that
it means (page.js); without scripts one sees the whole pair's.
Letters: E entries, C cells, M maps, as in pipeline.pages.student.example_view.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import torch

from pipeline import __version__
from pipeline.pages.boxes import picture_in_drawing
from pipeline.pages.document import document
from pipeline.pages.html import h, html_text, shortened
from pipeline.pages.sections import missing, percent
from pipeline.pages.student.example_view import Entry, View

_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")
_DARKEST = 0.78  # page.js darkens by the same
_LEAST_SHOWN = 0.001


def page_text(student: str, views: Sequence[View]) -> str:
    """The page as an HTML document; `student` is the folder's name as it was given."""
    body = h(
        "body",
        h(
            "header",
            h("p", {"class": "brand"}, "Boxless inside"),
            h("h1", student),
            h("p", {"class": "lead"}, _LEAD),
        ),
        h("main", *(_article(view) for view in views)),
        h("footer", h("p", f"Written by Boxless {__version__}.")),
    )
    style, script = _STYLE.read_text("utf-8"), _SCRIPT.read_text("utf-8")
    return html_text(document(f"{student} · Boxless", body, style="\n" + style, script=script))


_LEAD = (
    "Attention and predictions of a student for a picture and a text, without boxes. Point at a "
    "word, tap it, or go to it with the arrow keys: the cells that it attends to and those aligned "
    "with it are highlighted. A click keeps a word selected."
)


def _article(view: View) -> Element:
    attributes = {
        "data-maps": encoded(view.attention),
        "data-meaning": encoded(view.meaning),
        "data-shares": " ".join(
            f"{100 * share:.0f}" for share in view.attention.sum(dim=-1).flatten().tolist()
        ),
        "data-entries": len(view.entries),
    }
    verdict = f"text and picture belong together: {percent(view.match)}"
    said = "The text is too long for this student: its end was cut."
    cut = missing(said) if view.is_cut else None
    looks = h("p", {"class": "status", "aria-live": "polite"}, "[CLS], through all layers")
    return h(
        "article",
        attributes,
        h("h2", h("span", view.key), h("small", verdict)),
        _words(view.entries),
        cut,
        h(
            "div",
            {"class": "maps"},
            _map(view, "attends", "It attends to", view.attention[0, 0], looks),
            _map(
                view,
                "means",
                "It means",
                torch.ones(view.meaning.shape[1]),
                h(
                    "p",
                    {"class": "note"},
                    "By the head that phrase-region alignment (pra) trains; without that objective "
                    "these maps have no meaning.",
                ),
            ),
        ),
        _kinds(view.kinds),
        _guesses(view.entries),
    )


def _words(entries: Sequence[Entry]) -> Element:
    """The text as buttons, phrases in a line of their own."""

    def button(number: int, entry: Entry) -> Element:
        attributes = {
            "type": "button",
            "data-e": number,
            "aria-pressed": "true" if number == 0 else "false",
            "class": "special" if entry.is_special else None,
        }
        return h("button", attributes, h("bdi", shortened(entry.text)))

    words = [button(n, entry) for n, entry in enumerate(entries) if not entry.is_phrase]
    phrases = [button(n, entry) for n, entry in enumerate(entries) if entry.is_phrase]
    return h(
        "div",
        {"class": "text"},
        h("div", {"role": "group", "aria-label": "Words"}, *words),
        h("div", {"role": "group", "aria-label": "Phrases", "class": "phrases"}, *phrases)
        if phrases
        else None,
    )


def _map(view: View, name: str, title: str, heat: torch.Tensor, words: Element) -> Element:
    """The picture under its cells; `heat` [C] is what is seen before anything is pointed at."""
    small = view.picture.thumbnail()
    width, height = view.cell_px
    light = heat / heat.max().clamp(min=1e-12)
    cells = [
        h(
            "rect",
            {
                "x": f"{cell % view.columns * width:.2f}",
                "y": f"{cell // view.columns * height:.2f}",
                "width": f"{width + 0.05:.2f}",
                "height": f"{height + 0.05:.2f}",
                "fill-opacity": f"{_DARKEST * (1 - value):.3f}",
            },
        )
        for cell, value in enumerate(light.tolist())
    ]
    drawing = h(
        "svg",
        {
            "viewBox": f"0 0 {small.width} {small.height}",
            "role": "img",
            "aria-label": f"{title}: {view.rows} x {view.columns} cells over the picture",
        },
        picture_in_drawing(small.uri, small.width, small.height),
        h("g", {"class": f"cells {name}"}, *cells),
    )
    return h("figure", h("h3", title), drawing, h("figcaption", words))


def _kinds(kinds: Sequence[str]) -> Element:
    options = [h("option", {"value": n}, kind) for n, kind in enumerate(kinds)]
    return h("p", {"class": "kinds"}, h("label", "Attention ", h("select", *options)))


def _guesses(entries: Sequence[Entry]) -> Element | None:
    """What the student would say if a word were masked, a row a word."""
    rows = []
    for number, entry in enumerate(entries):
        if not entry.guesses:
            continue
        is_right = entry.guesses[0][0] == entry.text.lower()
        is_asked = entry.text == "[MASK]"
        mark = (
            None
            if is_asked
            else h("b", {"class": "good" if is_right else "bad"}, "✓" if is_right else "✗")
        )
        said = [
            h(
                "span",
                {"class": "guess", "style": f"--p:{100 * share:.0f}%"},
                h("bdi", text),
                " ",
                h("small", percent(share)),
            )
            for place, (text, share) in enumerate(entry.guesses)
            if place == 0 or share >= _LEAST_SHOWN
        ]
        attributes = {"data-e": number, "class": "asked" if is_asked else None}
        rows.append(
            h(
                "li",
                attributes,
                h("span", h("bdi", entry.text), " ", mark),
                h("span", {"class": "guesses"}, *said),
            )
        )
    if not rows:
        return None
    heading = h("h3", "Predictions if the word is masked")
    return h("div", {"class": "hidden-words"}, heading, h("ol", *rows))


def encoded(maps: torch.Tensor) -> str:
    """Maps [..., C] as base64 of a byte a cell: 255 is the brightest cell of its map."""
    scaled = maps / maps.amax(dim=-1, keepdim=True).clamp(min=1e-12) * 255
    return base64.b64encode(scaled.round().to(torch.uint8).numpy().tobytes()).decode("ascii")
