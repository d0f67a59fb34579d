"""Random views of a picture, applied to its boxes, phrases and captions too.

A view is a crop that is stretched to the size of the whole picture (the random resized crop of
Inception, arXiv 1409.4842), perhaps mirrored, with other colours. In the captions of a mirrored
picture left and right change places.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from sharding.format.schema import Sample
from stages.pretrain.data_config import AugmentConfig

NUM_TRIES = 10
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True, kw_only=True)
class View:
    """`box` (left, top, right, bottom) in pixels of the upright picture, whether it is mirrored,
    and factors of brightness, contrast and saturation (1 leaves them)."""

    box: tuple[int, int, int, int]
    is_mirrored: bool
    brightness: float
    contrast: float
    saturation: float


def draw_view(
    config: AugmentConfig,
    width: int,
    height: int,
    random: np.random.Generator,
    number: int | None = None,
) -> View:
    """A view of a picture of width x height pixels. `number`: which of `num_views` views that come
    again; of those a share of `mirror` is mirrored, as nearly as can be, so that no picture's views
    are all alike."""
    jitter = random.uniform(1 - config.colour, 1 + config.colour, size=3)
    box = _draw_box(config, width, height, random)
    is_mirrored = bool(random.random() < config.mirror)
    if number is not None and config.num_views is not None:
        is_mirrored = number < round(config.mirror * config.num_views)
    return View(
        box=box,
        is_mirrored=is_mirrored,
        brightness=jitter[0],
        contrast=jitter[1],
        saturation=jitter[2],
    )


def _draw_box(
    config: AugmentConfig, width: int, height: int, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """A crop that fits; the whole picture where `NUM_TRIES` draws have none."""
    for _ in range(NUM_TRIES):
        area = random.uniform(config.min_area, 1)
        most = math.log(config.max_stretch)
        stretch = math.exp(random.uniform(-most, most) / 2)
        crop_width = round(width * math.sqrt(area) * stretch)
        crop_height = round(height * math.sqrt(area) / stretch)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(random.integers(width - crop_width + 1))
            top = int(random.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    return 0, 0, width, height


def view_picture(view: View, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The view of an upright RGB picture, at `size` (width, height): uint8 [H, W, 3]."""
    seen = image.resize(size, Image.Resampling.BILINEAR, box=view.box)
    if view.is_mirrored:
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.saturation),
    ):
        if factor != 1:
            seen = enhance(seen).enhance(factor)
    return np.asarray(seen)


def view_sample(view: View, sample: Sample, min_visible: float) -> Sample:
    """The sample as its view has it: width and height of the crop, boxes within it, captions and
    phrases. Objects of which less than `min_visible` of their area is left are dropped, with their
    similarities. The bytes of the picture stay, and so does `truth`, which no objective reads boxes
    from."""
    left, top, right, bottom = view.box
    info: dict[str, Any] = {**sample.info, "width": right - left, "height": bottom - top}
    objects, kept = sample.objects, None
    if objects is not None:
        boxes = view_boxes(view, objects["box"])
        kept = _areas(boxes) >= np.maximum(min_visible * _areas(objects["box"]), 1e-6)
        objects = objects.copy()
        objects["box"] = boxes
        objects = objects[kept]
    captions, every = list(info["captions"]), [list(rows) for rows in info.get("phrases", [])]
    for row, caption in enumerate(captions):
        phrases = every[row] if every else []
        if kept is not None:
            phrases = [
                {**p, "similarity": np.asarray(p["similarity"])[kept].tolist()} for p in phrases
            ]
        if view.is_mirrored:
            captions[row], phrases = swap_sides(caption, phrases)
        if every:
            every[row] = phrases
    info["captions"] = captions
    if every:
        info["phrases"] = every
    return replace(sample, info=info, objects=objects)


def view_boxes(view: View, boxes: np.ndarray) -> np.ndarray:
    """Boxes [O, 4], xyxy in pixels of the picture -> in pixels of the crop, cut to it, mirrored."""
    left, top, right, bottom = view.box
    x = np.clip(boxes[:, 0::2] - left, 0, right - left)
    y = np.clip(boxes[:, 1::2] - top, 0, bottom - top)
    if view.is_mirrored:
        x = (right - left - x)[:, ::-1]
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)


def swap_sides(caption: str, phrases: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Left and right change places in a caption; its phrases follow their words."""
    moves: list[tuple[int, int]] = []

    def other(match: re.Match[str]) -> str:
        word = OTHER_SIDE[match[0].lower()]
        moves.append((match.end(), len(word) - len(match[0])))
        return (
            word.upper()
            if match[0].isupper()
            else (word.capitalize() if match[0][0].isupper() else word)
        )

    swapped = SIDES.sub(other, caption)

    def place(character: int) -> int:
        return character + sum(longer for end, longer in moves if end <= character)

    moved = []
    for phrase in phrases:
        start, end = place(phrase["start"]), place(phrase["end"])
        moved.append({**phrase, "start": start, "end": end, "text": swapped[start:end]})
    return swapped, moved


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
