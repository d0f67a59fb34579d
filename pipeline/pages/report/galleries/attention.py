"""Gallery of attention: maps of a caption's words over the picture.

Reads `attention` of transfer/evaluate/examples.json. Letters: R, C rows and columns of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.pages.boxes import picture_in_drawing
from pipeline.pages.html import h, shortened
from pipeline.pages.report.galleries.grounding import heat_in_drawing
from pipeline.pages.sections import Section, percent
from pipeline.pages.thumbnails import Pictures, Thumbnail, grid_class, thumbnail
from pipeline.runner.run_files import read_object
from pipeline.runner.run_folder import RunFolder

_LONGEST_PX = 240
_NUM_PICTURES = 4
_MOST_WORDS = 5


def attention_section(run: RunFolder, pictures: Pictures) -> Section | None:
    """Maps of some captions; None where evaluate has left none (it did not run, or is older)."""
    evaluated = read_object(run.transfer / "evaluate" / "examples.json")
    examples = (evaluated.get("attention") or [])[:_NUM_PICTURES]
    # Where the truth of phrases is known, `grounding` shows them with hits and misses already.
    with_phrases = not evaluated.get("grounding")
    rows = [_row(example, pictures, with_phrases) for example in examples]
    drawn = [row for row in rows if row is not None]
    if not drawn:
        return None
    note = (
        "First of each row: attention of [CLS] to the picture through all layers (attention "
        f"rollout). Then the {_MOST_WORDS} words with the most attention to the picture, in the "
        "last layer, the mean of its heads; the percentage is the share of a word's attention that "
        "goes to the picture, not to words. Brightness is scaled to the maximum of each map."
    )
    return Section(
        name="attention",
        title="Attention",
        content=(h("p", {"class": "note"}, note), *drawn),
    )


def most_looking(words: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The words that attend to the picture most, in the order of the caption."""
    ranked = sorted(words, key=lambda word: -float(word["share"]))[:_MOST_WORDS]
    return sorted(ranked, key=lambda word: int(word["start"]))


def _row(example: dict[str, Any], pictures: Pictures, with_phrases: bool) -> Element | None:
    sample = pictures.find(example["key"])
    small = thumbnail(sample.image, longest_px=_LONGEST_PX) if sample else None
    if small is None:
        return None
    caption = example["caption"]
    figures = [_figure(example, small, example["whole"], "the pair", "[CLS]")]
    for word in most_looking(example["words"]):
        text = caption[word["start"] : word["end"]]
        said = f"{percent(word['share'])} on the picture"
        figures.append(_figure(example, small, word["heat"], said, text))
    for phrase in example["phrases"] if with_phrases else []:
        text = caption[phrase["start"] : phrase["end"]]
        figures.append(_figure(example, small, phrase["heat"], "by its meaning", text))
    heading = h("h3", h("bdi", "“", shortened(caption), "”"), " ", _match(example["match"]))
    return h("div", heading, h("div", {"class": grid_class("heats", pictures)}, *figures))


def _match(share: float) -> Element:
    return h("small", f"fits the picture: {percent(share)}")


def _figure(
    example: dict[str, Any], small: Thumbnail, heat: Sequence[float], said: str, text: str
) -> Element:
    drawing = h(
        "svg",
        {
            "viewBox": f"0 0 {small.width} {small.height}",
            "role": "img",
            "aria-label": f"Where “{shortened(text)}” looks.",
        },
        picture_in_drawing(small.uri, small.width, small.height),
        heat_in_drawing({**example, "heat": heat}),
    )
    caption = h("figcaption", h("bdi", h("b", shortened(text))), " ", h("small", said))
    return h("figure", drawing, caption)
