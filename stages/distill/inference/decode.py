"""Decodes the pictures of samples, in several threads."""

from __future__ import annotations

import numpy as np
import torch

from boxless.errors import BoxlessError
from sharding.format.schema import Sample
from stages.picture import open_picture


def decode(sample: Sample) -> torch.Tensor:
    """The picture, upright, as uint8 RGB [H, W, 3].

    Raises ValueError where its size is not the one in its json, as boxes would then be wrong, and
    PictureError, which is one, for bytes that are no picture.
    """
    pixels = np.array(open_picture(sample.image))
    height, width = pixels.shape[:2]
    said = (sample.info["width"], sample.info["height"])
    if (width, height) != said:
        raise BoxlessError(f"the picture is {width} x {height} pixels, its json says {said}")
    return torch.from_numpy(pixels)
