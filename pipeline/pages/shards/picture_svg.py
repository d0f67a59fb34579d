"""A sample's picture with its boxes as inline SVG, in pixels of the original picture.

All boxes are there; those of the strongest objects are bold and have tags, the others are faint
until they are pointed at, so that a hundred boxes do not hide the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from pipeline.pages.boxes import outline, picture_in_drawing
from pipeline.pages.html import h, shortened
from pipeline.pages.palette import COLOURS
from pipeline.pages.shards.sample_view import Mark, Scene
from pipeline.pages.shards.tag_placement import Size, Tag, place_tags
from pipeline.pages.shards.text_width import width_px

NUM_TAGGED = 16
NUM_NAMED = 10
"""With more objects than this the tags are numbers alone."""

# As it is commonly seen: sizes of tags are those of a drawing of this many pixels.
_WIDTH_PX, _HEIGHT_PX = 480, 440
_LETTERS_PX, _TAG_PX, _PADDING_PX = 12, 16, 4
_MOST_LETTERS = 26


def is_dashed(number: int) -> bool:
    """Whether an object's box is dashed: every second round of the colours is."""
    return (number - 1) // len(COLOURS) % 2 == 1


def colour_class(number: int) -> str:
    """The style sheet's class for the colour of an object."""
    return f"k{(number - 1) % len(COLOURS)}{' d' if is_dashed(number) else ''}"


def tag_texts(mark: Mark, *, is_named: bool) -> tuple[str | None, str]:
    """The long tag of an object, if it shall have one, and the short one."""
    name = mark.name
    if len(name) > _MOST_LETTERS:
        name = name[: _MOST_LETTERS - 1] + "…"
    return (f"{mark.number} {name}" if is_named else None), str(mark.number)


def drawing(scene: Scene) -> Element:
    """The drawing; each object is a group that bears its number as data-o."""
    width, height = scene.picture.width, scene.picture.height
    pixel = max(width / _WIDTH_PX, height / _HEIGHT_PX)  # of the drawing, in those of the picture
    tags = _tags(scene.marks[:NUM_TAGGED], len(scene.marks) <= NUM_NAMED, (width, height), pixel)
    shapes: list[Element] = []
    for box in scene.truth:
        shapes += outline(box, "true-under"), outline(box, "true")
    # Small ones over large ones, so that each can be pointed at.
    for mark in sorted(scene.marks, key=_area, reverse=True):
        shapes.append(_frame(mark, pixel, (width, height)))
    for mark, tag in zip(scene.marks, tags):
        if tag is not None:
            shapes.append(_bold_tag(mark, tag, len(scene.marks) <= NUM_NAMED, pixel))
    names = ", ".join(mark.name for mark in scene.marks[:NUM_TAGGED])
    said = shortened(f"{len(scene.marks)} objects: {names}" if names else "No objects")
    small = scene.picture.thumbnail()
    return h(
        "svg",
        {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": said},
        picture_in_drawing(small.uri, width, height),
        *shapes,
    )


def _area(mark: Mark) -> float:
    return (mark.box[2] - mark.box[0]) * (mark.box[3] - mark.box[1])


def _tags(marks: Sequence[Mark], is_named: bool, inside: Size, pixel: float) -> list[Tag | None]:
    sizes = []
    for mark in marks:
        long, short = tag_texts(mark, is_named=is_named)
        sizes.append((_size(long, pixel) if long else None, _size(short, pixel)))
    return place_tags([mark.box for mark in marks], sizes, inside)


def _size(text: str, pixel: float) -> Size:
    return (width_px(text, _LETTERS_PX) + 2 * _PADDING_PX) * pixel, _TAG_PX * pixel


def _frame(mark: Mark, pixel: float, inside: Size) -> Element:
    """The box of an object; that of a weak one with the tag that shows when it is pointed at."""
    is_bold = mark.number <= NUM_TAGGED
    framed = outline(mark.box, "f")
    if is_bold:
        return h("g", _of(mark, "o"), outline(mark.box, "u"), framed)
    wide, high = _size(str(mark.number), pixel)
    x = min(mark.box[0], inside[0] - wide)
    y = min(max(mark.box[1] - high, 0.0), inside[1] - high)
    tag = Tag(max(x, 0.0), max(y, 0.0), wide, high, False)
    return h("g", _of(mark, "o weak"), framed, *_tag(str(mark.number), tag, pixel))


def _bold_tag(mark: Mark, tag: Tag, is_named: bool, pixel: float) -> Element:
    long, short = tag_texts(mark, is_named=is_named)
    text = long if tag.is_long and long else short
    return h("g", _of(mark, "o"), *_tag(text, tag, pixel))


def _of(mark: Mark, kind: str) -> dict[str, object]:
    return {"class": f"{kind} {colour_class(mark.number)}", "data-o": mark.number}


def _tag(text: str, tag: Tag, pixel: float) -> tuple[Element, Element]:
    """The tag's ground and its text, which the browser squeezes into the width meant for it."""
    ground = {
        "class": "tag",
        "x": _short(tag.x0),
        "y": _short(tag.y0),
        "width": _short(tag.width),
        "height": _short(tag.height),
        "rx": _short(2 * pixel),
    }
    place = {
        "class": "tag",
        "x": _short(tag.x0 + _PADDING_PX * pixel),
        "y": _short(tag.y0 + 12.2 * pixel),
        "font-size": _short(_LETTERS_PX * pixel),
        "textLength": _short(tag.width - 2 * _PADDING_PX * pixel),
        "lengthAdjust": "spacingAndGlyphs",
    }
    return h("rect", ground), h("text", place, text)


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
