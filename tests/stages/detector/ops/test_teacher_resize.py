"""The resizing rule of bottom-up attention against OpenCV; detectron2's is in
test_teacher_primitives.py.

tests/data/opencv_resize.npz was recorded with OpenCV 4.14.0 (5.0.0 gives the same to 5e-5) as
bottom-up-attention.pytorch's utils/extract_utils.py, get_image_blob, calls it: the mean off, one
scale, cv2.resize(float32, None, fx=scale, fy=scale, interpolation=INTER_LINEAR).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.detector.net_config import PictureConfig
from stages.detector.ops.resize import prepare, resized_size, scales, stack

RECORDED = Path(__file__).parents[3] / "data" / "opencv_resize.npz"


def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDED) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("case", range(4))
def test_pixels_are_those_of_opencv(case: int) -> None:
    """Oracle: OpenCV's pixels and factor, for a picture enlarged, shrunk, and both once more held
    back by its longer side, where the rounded size and the factor do not agree."""
    arrays = recorded()
    shorter_px, longer_px = arrays["limits"][case].tolist()
    config = PictureConfig(
        shorter_px=shorter_px,
        longer_px=longer_px,
        pixel_std=(1.0, 1.0, 1.0),
        pixel_mean=tuple(arrays["pixel_mean"].tolist()),
        resize="floats",
    )
    prepared = prepare(torch.from_numpy(arrays["picture"]), config)
    assert (prepared.height, prepared.width) == arrays["picture"].shape[:2]
    assert prepared.scale == (arrays[f"scale{case}"],) * 2
    assert prepared.pixels.dtype == torch.float32
    expected = torch.from_numpy(arrays[f"pixels{case}"])
    torch.testing.assert_close(prepared.pixels, expected, atol=2e-4, rtol=0)


def test_sizes_are_those_of_opencv() -> None:
    """Oracle: the shapes of its results; halves go to the even neighbour."""
    for height, width, shorter_px, longer_px, *expected in recorded()["sizes"].tolist():
        config = PictureConfig(shorter_px=shorter_px, longer_px=longer_px, resize="floats")
        assert list(resized_size((height, width), config)) == expected


def test_normalised_pixels_are_stacked_as_they_are() -> None:
    """Oracle: the prepared pixels, divided by the deviation once; zeros right and below."""
    picture = torch.full((4, 6, 3), 30, dtype=torch.uint8)
    config = PictureConfig(
        shorter_px=8,
        longer_px=100,
        pixel_mean=(10.0, 20.0, 30.0),
        pixel_std=(2.0, 4.0, 5.0),
        resize="floats",
    )
    some = [prepare(picture, config).pixels, prepare(picture[:, :5], config).pixels]
    batch = stack(some, config, torch.device("cpu"))
    assert batch.shape == (2, 3, 8, 12)
    assert batch[0].flatten(1).unique(dim=1).flatten().tolist() == [10, 2.5, 0]
    assert not batch[1, :, :, 10:].any() and batch[1, 0, :, :10].eq(10).all()


def test_boxes_grow_with_the_sides_or_by_one_factor() -> None:
    """Oracle: by hand: 61 x 97 to 60 x 95 (95.4) grows by 60 / 61 and 95 / 97, or by 60 / 61."""
    config = PictureConfig(shorter_px=60, longer_px=200)
    assert scales((97, 61), config) == (60 / 61, 95 / 97)
    assert prepare(torch.zeros(97, 61, 3, dtype=torch.uint8), config).scale == (60 / 61, 95 / 97)
    floats = PictureConfig(shorter_px=60, longer_px=200, resize="floats")
    assert scales((97, 61), floats) == (60 / 61, 60 / 61)
