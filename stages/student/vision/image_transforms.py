"""Decodes, resizes, normalises and pads pictures for the student.

Letters: N pictures, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from sharding.format.resize import Resize
from stages.picture import open_picture

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A batch of pictures: `pixels` [N, 3, H, W], normalised floats or uint8, and `sizes_px`
    [N, 2], each one's height, width before padding. Padding is at the right and the bottom, zero
    after normalisation."""

    pixels: torch.Tensor
    sizes_px: torch.Tensor


def load_picture(source: bytes | Image.Image, *, shorter_px: int, longer_px: int) -> np.ndarray:
    """Decode a picture's bytes, or take an upright one that is open, and resize: uint8 [H, W, 3],
    RGB. Raises PictureError for bytes that are no picture."""
    rgb = open_picture(source) if isinstance(source, bytes) else source.convert("RGB")
    size = Resize(shorter_px=shorter_px, longer_px=longer_px).size(*rgb.size)
    return np.asarray(rgb if size == rgb.size else rgb.resize(size, Image.Resampling.BILINEAR))


def stack_bytes(arrays: Sequence[np.ndarray], *, multiple_px: int) -> Pictures:
    """Pad uint8 [H, W, 3] arrays to one size, a multiple of `multiple_px`: the student's cell size,
    so that pooling never drops an edge (SOHO's released code does). `pixels` stay uint8, a quarter
    of the memory: `normalise` makes of them, on the student's device, what the CNN takes."""
    sizes = [array.shape[:2] for array in arrays]
    height, width = (
        -(-max(size[axis] for size in sizes) // multiple_px) * multiple_px for axis in (0, 1)
    )
    pixels = torch.zeros(len(arrays), 3, height, width, dtype=torch.uint8)
    for padded, array in zip(pixels, arrays):
        padded[:, : array.shape[0], : array.shape[1]] = torch.tensor(array).permute(2, 0, 1)
    return Pictures(pixels=pixels, sizes_px=torch.tensor(sizes))


def normalise(pixels: torch.Tensor, sizes_px: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, H, W] with their heights and widths [N, 2] -> float32, normalised by ImageNet's
    mean and deviation, with zeros for padding."""
    # Filled there: a copy from the host would wait.
    mean, std = (
        torch.stack([torch.full((1, 1), value, device=pixels.device) for value in values])
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    rows = torch.arange(pixels.shape[2], device=pixels.device)
    columns = torch.arange(pixels.shape[3], device=pixels.device)
    inside = (rows < sizes_px[:, :1])[:, :, None] & (columns < sizes_px[:, 1:])[:, None]
    normalised = (pixels.float().div_(255) - mean).div_(std)
    return normalised.masked_fill_(~inside[:, None], 0.0)


def stack_pictures(arrays: Sequence[np.ndarray], *, multiple_px: int) -> Pictures:
    """Pad uint8 [H, W, 3] arrays as `stack_bytes`, and normalise them."""
    stacked = stack_bytes(arrays, multiple_px=multiple_px)
    pixels = normalise(stacked.pixels, stacked.sizes_px)
    return Pictures(pixels=pixels, sizes_px=stacked.sizes_px)
