"""Gallery of grounding: a phrase's heat map, its predicted point and the true box.

Reads `grounding` of transfer/evaluate/examples.json. Letters: R, C rows and columns of the grid.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from pipeline.pages.boxes import cross, outline, picture_in_drawing
from pipeline.pages.html import h, shortened
from pipeline.pages.sections import Section, missing
from pipeline.pages.thumbnails import Pictures, data_uri, grid_class, thumbnail
from pipeline.runner.run_files import read_object
from pipeline.runner.run_folder import RunFolder

_LONGEST_PX = 300
_HEAT_PX = 96
_NUM_SHOWN = 12
_MOST_OF_A_CAPTION = 3
# Heat from 0 to 1, and what covers the picture there: red, green, blue, alpha, 0 to 255.
_STOPS = ((0, 10, 12, 40, 165), (0.55, 255, 165, 20, 120), (0.9, 255, 190, 60, 10))


def heat_section(run: RunFolder, pictures: Pictures) -> Section:
    """Heat maps of some captions' phrases; a note where the source has no true boxes."""
    examples = read_object(run.transfer / "evaluate" / "examples.json").get("grounding") or []
    figures = [_figure(key, phrase, pictures) for key, phrase in chosen(examples)]
    drawn = [figure for figure in figures if figure is not None]
    if not drawn:
        words = "No heat maps: evaluate has not run, or the phrases have no annotated objects."
        return Section(name="heat", title="Phrase grounding", content=(missing(words),))
    every = [phrase for example in examples for phrase in example["phrases"]]
    num_hits = sum(bool(phrase["hit"]) for phrase in every)
    note = (
        "Heat maps of the marked phrases, from the whole caption and the picture, without boxes. "
        "The cross is the cell with the highest score, the dashed box the true one. The cross is "
        f"in the true box for {num_hits} of {len(every)} phrases kept as examples."
    )
    if num_hits < len(every):
        note += " Captions with a miss come first."
    return Section(
        name="heat",
        title="Phrase grounding",
        content=(
            h("p", {"class": "note"}, note),
            h("div", {"class": grid_class("heats", pictures)}, *drawn),
        ),
    )


def chosen(examples: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Phrases to show with their picture's key: one caption a picture with all its phrases, so
    that one sees the light move; captions with a miss first."""
    captions: list[tuple[bool, str, list[dict[str, Any]]]] = []
    for example in examples:
        groups: dict[str, list[dict[str, Any]]] = {}
        for phrase in example["phrases"]:
            groups.setdefault(phrase["caption"], []).append(phrase)
        own = [(all(p["hit"] for p in group), example["key"], group) for group in groups.values()]
        captions += sorted(own, key=lambda entry: (entry[0], -len(entry[2])))[:1]
    found: list[tuple[str, dict[str, Any]]] = []
    for _, key, group in sorted(captions, key=lambda entry: entry[0]):
        if len(group) > _MOST_OF_A_CAPTION:  # then a miss shall not be among those left out
            group = sorted(group, key=lambda phrase: bool(phrase["hit"]))[:_MOST_OF_A_CAPTION]
        found += [(key, phrase) for phrase in group]
    return found[:_NUM_SHOWN]


def heat_picture(phrase: dict[str, Any]) -> bytes:
    """PNG of the heat, smooth and over the whole grid: dark where there is none, clear where it is
    strongest with a warm rim between. ValueError where the heat is not R x C numbers."""
    shape = (int(phrase["rows"]), int(phrase["columns"]))
    heat = np.asarray(phrase["heat"], dtype=np.float32).reshape(shape)
    share = np.nan_to_num(heat) / max(float(np.nanmax(heat)), 1e-9)
    scale = max(1, _HEAT_PX // max(shape))
    size = (shape[1] * scale, shape[0] * scale)
    smooth = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BICUBIC))
    warm = np.clip(smooth, 0, 1) ** 0.7
    stops = np.array(_STOPS, dtype=np.float64).T
    colours = np.stack([np.interp(warm, stops[0], channel) for channel in stops[1:]], axis=-1)
    out = io.BytesIO()
    Image.fromarray(colours.round().astype(np.uint8)).save(out, "PNG", optimize=True)
    return out.getvalue()


def heat_in_drawing(phrase: dict[str, Any]) -> Element:
    """The heat as it lies over a drawing in pixels of the original picture; `cell_px` is width and
    height of a cell in them."""
    cell_width, cell_height = phrase["cell_px"]
    grid = {"width": phrase["columns"] * cell_width, "height": phrase["rows"] * cell_height}
    light = {"href": data_uri(heat_picture(phrase), "PNG"), "preserveAspectRatio": "none"}
    return h("image", {**light, **grid})


def _figure(key: str, phrase: dict[str, Any], pictures: Pictures) -> Element | None:
    sample = pictures.find(key)
    small = thumbnail(sample.image, longest_px=_LONGEST_PX) if sample else None
    if small is None:
        return None
    hit = bool(phrase["hit"])
    boxes = phrase.get("boxes") or [phrase["box"]]  # an earlier version had one
    said = f"Heat map of “{phrase['text']}”: a {'hit' if hit else 'miss'}."
    drawing = h(
        "svg",
        {"viewBox": f"0 0 {small.width} {small.height}", "role": "img", "aria-label": said},
        picture_in_drawing(small.uri, small.width, small.height),
        heat_in_drawing(phrase),
        *(outline(box, name) for name in ("true-under", "true") for box in boxes),
        *cross(phrase["point"], max(small.width, small.height) / 30),
    )
    verdict = h("b", {"class": "good" if hit else "bad"}, "✓ hit" if hit else "✗ miss")
    caption = _marked(phrase["caption"], phrase["text"])
    return h("figure", drawing, h("figcaption", caption, " ", verdict))


def _marked(caption: str, text: str) -> Element:
    before, found, after = caption.partition(text)
    if not found or len(caption) > len(shortened(caption)):
        return h("bdi", h("mark", shortened(text)))
    return h("bdi", before, h("mark", text), after)
