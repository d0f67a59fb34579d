"""Tags on pictures, and colours of boxes. Oracles: rectangles compared by brute force; OKLab and
the simulation of colour-blind eyes by Machado et al., written down here from their papers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageColor

from pipeline.pages.palette import COLOURS, colour
from pipeline.pages.shards.tag_placement import place_tags
from pipeline.pages.shards.text_width import width_px

# Ottosson, "A perceptual color space for image processing", 2020: sRGB to cones, cones to Lab.
CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Machado et al. 2009, table 1, severity 1.0, over linear sRGB.
EYES = {
    "all cones": np.eye(3),
    "no red cones": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "no green cones": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "no blue cones": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def linear_rgb() -> np.ndarray:
    """The palette [8, 3] in linear sRGB."""
    share = np.array([ImageColor.getrgb(colour) for colour in COLOURS]) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("eyes", EYES)
def test_any_two_colours_can_be_reported_apart(eyes: str) -> None:
    """0.11 in OKLab, where black and white are 1 apart; a just noticeable difference is 0.02."""
    seen = np.clip(linear_rgb() @ EYES[eyes].T, 0, 1)
    lab = np.cbrt(seen @ CONES.T) @ LAB.T
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert apart[~np.eye(len(COLOURS), dtype=bool)].min() >= 0.11


def test_black_numbers_can_be_read_on_all_colours() -> None:
    """Contrast as WCAG 2.2 defines it; 4.5 is what it asks of small letters."""
    luminance = linear_rgb() @ np.array([0.2126, 0.7152, 0.0722])
    assert ((luminance + 0.05) / 0.05).min() >= 4.5
    assert colour(len(COLOURS)) == colour(0) == COLOURS[0]


@pytest.mark.parametrize("seed", range(8))
def test_no_tag_lies_over_another_or_leaves_the_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = rng.uniform(60, 500, 2)
    corners = rng.uniform(0, 1, (60, 4)) * [width, height, width, height]
    boxes = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])],
        axis=1,
    )
    sizes = [((float(wide), 14.0), (16.0, 14.0)) for wide in rng.uniform(20, 120, len(boxes))]
    tags = place_tags(boxes.tolist(), sizes, (width, height))
    placed = [tag for tag in tags if tag is not None]
    assert len(tags) == len(boxes) and len(placed) >= 6
    for number, tag in enumerate(placed):
        assert 0 <= tag.x0 and tag.x0 + tag.width <= width + 1e-6
        assert 0 <= tag.y0 and tag.y0 + tag.height <= height + 1e-6
        for other in placed[:number]:
            assert (
                tag.x0 >= other.x0 + other.width
                or other.x0 >= tag.x0 + tag.width
                or tag.y0 >= other.y0 + other.height
                or other.y0 >= tag.y0 + tag.height
            )


def test_first_box_has_its_long_tag_above_it() -> None:
    tag, second, none = place_tags(
        [(10, 50, 90, 90), (10, 50, 90, 90), (0, 0, 5, 5)],
        [((40, 10), (8, 10)), ((40, 10), (8, 10)), (None, (200, 10))],
        (100, 100),
    )
    assert tag is not None and (tag.x0, tag.y0, tag.is_long) == (10, 40, True)
    assert second is not None and (second.x0, second.y0) != (tag.x0, tag.y0)
    assert none is None  # it is wider than the picture


def test_width_of_text() -> None:
    """Letters beyond ASCII are as wide as high."""
    assert width_px("中中", 12) == 24 and 10 < width_px("ab", 12) < 20
