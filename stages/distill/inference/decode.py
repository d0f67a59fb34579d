"""From a sample's bytes to its pixels. Reached from `flow.py`, on several threads at a time."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from sharding.format.schema import Sample


def decode(sample: Sample) -> torch.Tensor:
    """The picture as uint8 RGB [H, W, 3], turned by no EXIF tag, as the student sees it.

    Raises ValueError where its size is not the one in its json, as boxes would then be wrong; and
    what Pillow raises on bytes that it cannot read.
    """
    with Image.open(io.BytesIO(sample.image)) as image:
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    height, width = pixels.shape[:2]
    said = (sample.info["width"], sample.info["height"])
    if (width, height) != said:
        raise ValueError(f"the picture is {width} x {height} pixels, its json says {said}")
    return torch.from_numpy(pixels)
