"""Draws the teacher's objects on a picture: numbered boxes, and a legend below.

Letters: O objects, T true boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from pipeline.pages.html import h
from pipeline.pages.object_names import Names, names_of
from pipeline.pages.palette import colour
from pipeline.pages.thumbnails import thumbnail
from sharding.format.schema import Sample

_LONGEST_PX = 400
_MOST_DRAWN = 8
_SURE = 0.3
_SAME_PLACE_IOU = 0.5
_NUMBER_PX, _DISC_PX = 14, 10.5


def boxed_picture(sample: Sample, about: Mapping[str, Any]) -> Element | None:
    """The figure; None where the picture cannot be decoded. `about` names labels and attributes."""
    small = thumbnail(sample.image, longest_px=_LONGEST_PX)
    if small is None or sample.objects is None:
        return None
    rows = drawn_rows(sample.objects)
    truth = sample.info.get("truth", {})
    known = names_of(about)
    names = [_name(sample.objects[row], known) for row in rows]
    shapes: list[Element] = []
    for box in truth.get("boxes", []):
        shapes += outline(box, "true-under"), outline(box, "true")
    pixel = math.sqrt(small.width * small.height) / 260  # of the drawing as it is commonly seen
    places = [sample.objects["box"][row].tolist() for row in rows]
    for number, box in enumerate(places):
        shapes += _frame(box, number)
    for number, box in enumerate(places):  # over all frames, so that each can be read
        shapes += _number(box, number, pixel)
    said = f"Teacher's boxes: {', '.join(names) or 'none'}"
    figure = h(
        "svg",
        {"viewBox": f"0 0 {small.width} {small.height}", "role": "img", "aria-label": said},
        picture_in_drawing(small.uri, small.width, small.height),
        *shapes,
    )
    items = []
    for number, (row, name) in enumerate(zip(rows, names)):
        one = sample.objects[row]
        true = is_true(one["box"].tolist(), known.label(int(one["label"])), truth)
        items.append(_item(number, name, float(one["score"]), true))
    undrawn = len(sample.objects) - len(rows)
    rest = h("p", {"class": "note"}, f"and {undrawn} more, not drawn") if undrawn else None
    return h("figure", figure, h("figcaption", h("ol", {"class": "objects"}, *items), rest))


def picture_in_drawing(uri: str, width: float, height: float) -> Element:
    """A picture as the ground of an SVG drawing in its pixels."""
    return h("image", {"href": uri, "width": width, "height": height})


def outline(box: Sequence[float], name: str) -> Element:
    """A rectangle around x0, y0, x1, y1 of that class of the style sheet."""
    x0, y0, x1, y1 = (round(float(v), 1) for v in box)
    size = {"width": round(x1 - x0, 1), "height": round(y1 - y0, 1)}
    return h("rect", {"class": name, "x": x0, "y": y0, **size})


def cross(point: Sequence[float], arm: float) -> list[Element]:
    """A cross at x, y with arms of that length."""
    x, y = (float(v) for v in point)
    path = f"M{x - arm:.1f} {y:.1f}h{2 * arm:.1f}M{x:.1f} {y - arm:.1f}v{2 * arm:.1f}"
    return [h("path", {"class": name, "d": path}) for name in ("cross-under", "cross")]


def drawn_rows(objects: np.ndarray) -> list[int]:
    """Rows worth drawing: the strongest of each place, if it is likely at all; at most eight."""
    rows: list[int] = []
    for row in range(len(objects)):
        if objects["score"][row] < _SURE or len(rows) == _MOST_DRAWN:
            break
        if all(iou(objects["box"][row], objects["box"][r]) < _SAME_PLACE_IOU for r in rows):
            rows.append(row)
    return rows


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = float(sides.prod())
    union = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared
    return shared / union if union > 0 else 0.0


def is_true(box: Sequence[float], label: str, truth: Mapping[str, Any]) -> bool | None:
    """Whether a true object of that label is there; None where the truth is not known."""
    if "boxes" not in truth:
        return None
    pairs = zip(truth["boxes"], truth["labels"])
    return any(name == label and iou(box, own) >= _SAME_PLACE_IOU for own, name in pairs)


def _name(row: np.void, names: Names) -> str:
    label = names.label(int(row["label"]))
    attribute = names.attribute_of(row)
    return label if attribute is None else f"{attribute} {label}"


def _frame(box: Sequence[float], number: int) -> tuple[Element, Element]:
    framed = outline(box, "box")
    framed.set("stroke", colour(number))
    return outline(box, "box-under"), framed


def _number(box: Sequence[float], number: int, pixel: float) -> tuple[Element, Element]:
    # That of a small object is small too, so that it does not hide it.
    pixel *= min(1.0, max(0.6, 0.3 * min(box[2] - box[0], box[3] - box[1]) / (_DISC_PX * pixel)))
    x, y = max(box[0], _DISC_PX * pixel), max(box[1], _DISC_PX * pixel)
    disc = {"cx": round(x, 1), "cy": round(y, 1), "r": round(_DISC_PX * pixel, 1)}
    place = {"x": round(x, 1), "y": round(y + 5 * pixel, 1), "text-anchor": "middle"}
    size = {"class": "number", "font-size": round(_NUMBER_PX * pixel, 1)}
    return (
        h("circle", {"class": "disc", "fill": colour(number), **disc}),
        h("text", {**place, **size}, str(number + 1)),
    )


def _item(number: int, name: str, score: float, true: bool | None) -> Element:
    style = f"background:{colour(number)}"
    wrong = h("span", {"class": "bad"}, " ✗\N{NO-BREAK SPACE}wrong") if true is False else None
    share = h("b", f"{100 * score:.0f}\N{NO-BREAK SPACE}%")
    said = h("span", {"dir": "auto"}, name, " ", share, wrong)
    return h("li", h("i", {"style": style}, str(number + 1)), said)
