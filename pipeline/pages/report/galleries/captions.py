"""Gallery of image-to-text retrieval: the five captions ranked first, right and wrong.

Reads `captions` of transfer/evaluate/examples.json. The other way round, pictures of a caption, is
`pipeline.pages.report.galleries.retrieval`.
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from pipeline.pages.html import h, shortened
from pipeline.pages.report.galleries.retrieval import chosen
from pipeline.pages.sections import Section, count
from pipeline.pages.thumbnails import Pictures, grid_class, thumbnail
from pipeline.runner.run_files import read_object
from pipeline.runner.run_folder import RunFolder

_LONGEST_PX = 300


def captions_section(run: RunFolder, pictures: Pictures) -> Section | None:
    """Some pictures whose caption it finds and some where it does not; None where evaluate has
    left none (it did not run, or is older)."""
    examples = read_object(run.transfer / "evaluate" / "examples.json").get("captions") or []
    answers = [_answer(example, pictures) for example in chosen(examples)]
    if not answers:
        return None
    note = (
        "The student ranks all held-out captions by how well they match a picture; these are the "
        "first five. A tick: written for this picture. Others may be true of it too, which is not "
        "annotated."
    )
    grid = h("div", {"class": grid_class("answers", pictures)}, *answers)
    content = (h("p", {"class": "note"}, note), grid)
    return Section(name="captions", title="Image-to-text retrieval", content=content)


def _answer(example: dict[str, Any], pictures: Pictures) -> Element:
    sample = pictures.find(example["key"])
    small = thumbnail(sample.image, longest_px=_LONGEST_PX) if sample else None
    shown = h("span", {"class": "lost"}, "not readable")
    if small:
        size = {"width": small.width, "height": small.height, "loading": "lazy"}
        shown = h("img", {"src": small.uri, "alt": "The picture to be described", **size})
    items = [_text(entry["text"], entry["right"], None) for entry in example["texts"]]
    if not any(entry["right"] for entry in example["texts"]):
        items.append(_text(example["right"], True, int(example["rank"])))
    return h("figure", {"class": "said"}, shown, h("figcaption", h("ol", *items)))


def _text(text: str, is_right: bool, place: int | None) -> Element:
    """A caption; `place` where it is not among the five."""
    mark = h("b", {"class": "good"}, "✓") if is_right else h("b", {"class": "bad"}, "✗")
    where = h("small", f" at place {count(place)}") if place else None
    said = "right: " if is_right else "wrong: "
    attributes = {"class": "apart" if place else None}
    return h(
        "li",
        attributes,
        mark,
        h("span", {"class": "unseen"}, said),
        h("bdi", shortened(text)),
        where,
    )
