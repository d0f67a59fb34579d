"""Checks ground truth and converts it to the upright picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Truth = dict[str, Any]

# Corpora round: up to this far outside is cut off silently, and a narrower box is no box.
ROUNDING_PX = 1.0
# How far a side may be from the other one, scaled: both were rounded, one perhaps twice.
SCALE_TOLERANCE_PX = 1.5


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Transforms the boxes of a ground truth to the upright picture: rotated first, then scaled.

    turn: the EXIF orientation, 5 to 8, that takes the picture they were made for to the upright
    one; 1 for none. size_px: (width, height) of the picture they were made for, None where it is
    the upright picture itself.
    """

    turn: int = 1
    size_px: tuple[int, int] | None = None


def fit_truth(
    truth: Truth,
    *,
    width: int,
    height: int,
    size_px: tuple[int, int] | None,
    orientation: int = 1,
) -> tuple[Truth | None, list[str]]:
    """The truth with its boxes inside the upright picture, and notes on what was changed.

    truth: "boxes" (xyxy, pixels), "labels", "attributes" row by row, and where they are known
    "phrases" (a list a caption of {"start", "end", and "objects": rows or "boxes": xyxy}).
    width, height: of the upright picture; orientation: its EXIF orientation. Boxes without area and
    those outside of the picture are dropped; those that stick out are cut. A phrase whose boxes are
    all dropped goes with them. Where `size_px` says that the boxes were drawn on the picture at
    another size, they are scaled; where it is the size of the stored pixels, they are turned; where
    it is another shape, there is no truth.
    """
    place, note = _placement(size_px, (width, height), orientation)
    if place is None:
        return None, [note]
    notes = [note] if note else []
    rows: dict[int, int] = {}
    boxes: list[list[float]] = []
    for row, box in enumerate(truth["boxes"]):
        fitted, why = _fit_box(_placed(box, place, width, height), width=width, height=height)
        if why:
            notes.append(f"{why} (object {row})")
        if fitted:
            rows[row] = len(boxes)
            boxes.append(fitted)
    found = {
        **truth,
        "boxes": boxes,
        "labels": [truth["labels"][row] for row in rows],
        "attributes": [truth["attributes"][row] for row in rows],
    }
    if "phrases" in truth:
        found["phrases"] = []
        for phrases in truth["phrases"]:
            fitted_phrases = []
            for phrase in phrases:
                fitted_phrase, reasons = _fit_phrase(phrase, rows, place, width, height)
                notes += reasons
                if fitted_phrase is not None:
                    fitted_phrases.append(fitted_phrase)
            found["phrases"].append(fitted_phrases)
    return found, notes


def keep_captions(truth: Truth, kept: list[int]) -> Truth:
    """The truth for some of the captions only, by number."""
    chosen = dict(truth)
    for name in ("phrases", "captions"):
        if name in truth:
            chosen[name] = [truth[name][i] for i in kept]
    return chosen


def finite_numbers(values: object, *, count: int) -> list[float] | None:
    """`values` as floats where it is a list of `count` finite numbers, else None."""
    if not isinstance(values, list) or len(values) != count:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return None
    # Bounded, as an integer of JSON can be too long for a float.
    return [float(v) for v in values] if all(abs(v) < 1e9 for v in values) else None


def stated_size(entry: Mapping[str, Any]) -> tuple[tuple[int, int] | None, str]:
    """((width, height) in pixels that an entry of annotations says, what is wrong with it).

    None where it says none; then boxes are taken for the picture as it is. Where it says something
    that is no size, the second is a note on it, else "".
    """
    given = [entry[side] for side in ("width", "height") if entry.get(side) is not None]
    numbers = finite_numbers(given, count=2) or []
    if len(numbers) == 2 and all(v >= 1 and v == int(v) for v in numbers):
        return (int(numbers[0]), int(numbers[1])), ""
    if not given:
        return None, ""
    got = f"{entry.get('width')!r} x {entry.get('height')!r}"[:80]
    return None, f"size unknown: got {got}; boxes are taken for the picture as it is"


def _placement(
    size_px: tuple[int, int] | None, upright: tuple[int, int], orientation: int
) -> tuple[Placement | None, str]:
    """The boxes, scaled from the size that they were made for, and a note where it is another."""
    if size_px is None or size_px == upright:
        return Placement(), ""
    sizes = f"{size_px[0]} x {size_px[1]} pixels, the picture has {upright[0]} x {upright[1]}"
    if _is_same_shape(size_px, upright):
        return Placement(size_px=size_px), f"boxes scaled: made for {sizes}"
    turned = (size_px[1], size_px[0])
    if orientation >= 5 and _is_same_shape(turned, upright):
        note = f"boxes turned: made for the stored orientation, {sizes}"
        return Placement(turn=orientation, size_px=size_px), note
    return None, f"truth dropped: made for {sizes}: another shape"


def _is_same_shape(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether one is the other at another scale, to the rounding of the smaller one."""
    small, large = sorted((a, b), key=max)
    if min(small) < 1:
        return False
    scale = max(large) / max(small)
    return max(abs(s * scale - p) / scale for s, p in zip(small, large, strict=True)) <= (
        SCALE_TOLERANCE_PX
    )


def _placed(box: Sequence[float], place: Placement, width: int, height: int) -> list[float]:
    """A box in pixels of the upright picture of `width` x `height`."""
    if place.size_px is None:
        return list(box)
    own_width, own_height = place.size_px
    if place.turn >= 5:
        box = turned_box(box, place.turn, own_width, own_height)
        own_width, own_height = own_height, own_width
    x, y = width / own_width, height / own_height
    return [box[0] * x, box[1] * y, box[2] * x, box[3] * y]


def turned_box(box: Sequence[float], orientation: int, width: int, height: int) -> list[float]:
    """A box on stored pixels, `width` x `height`, where the upright picture has it.

    orientation: EXIF's, 1 to 8 (Exif 2.32, 4.6.4 A, tag 274).
    """
    x0, y0, x1, y1 = box
    if orientation in (2, 3, 7, 8):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = height - y1, height - y0
    return [y0, x0, y1, x1] if orientation >= 5 else [x0, y0, x1, y1]


def _fit_phrase(
    phrase: dict[str, Any], rows: dict[int, int], place: Placement, width: int, height: int
) -> tuple[dict[str, Any] | None, list[str]]:
    """A phrase with the boxes that are left of it, and notes on its own boxes; None where it had
    some and none is left."""
    if "objects" in phrase:
        left = [rows[row] for row in phrase["objects"] if row in rows]
        if phrase["objects"] and not left:
            return None, []
        return {**phrase, "objects": left}, []
    boxes, notes = [], []
    for box in phrase["boxes"]:
        fitted, why = _fit_box(_placed(box, place, width, height), width=width, height=height)
        if why:
            notes.append(f"{why} (a phrase's)")
        if fitted:
            boxes.append(fitted)
    return ({**phrase, "boxes": boxes} if boxes else None), notes


def _fit_box(box: list[float], *, width: int, height: int) -> tuple[list[float] | None, str]:
    said = f"[{', '.join(f'{v:g}' for v in box)}]"
    x0, y0, x1, y1 = box
    if x1 - x0 < ROUNDING_PX or y1 - y0 < ROUNDING_PX:
        return None, f"box without area: {said}"
    cut = [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
    if cut[2] - cut[0] < ROUNDING_PX or cut[3] - cut[1] < ROUNDING_PX:
        return None, f"box outside of the picture: {said} on {width} x {height}"
    if max(abs(a - b) for a, b in zip(box, cut)) > ROUNDING_PX:
        return cut, f"box cut to the picture: {said} on {width} x {height}"
    return cut, ""
