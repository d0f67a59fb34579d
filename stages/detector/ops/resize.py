"""Resizes decoded pictures and stacks them into the network's input.

There are two rules, and a net sees well only by the one it was trained with. "pillow": Pillow's
bilinear filter on bytes, which averages where it shrinks, as detectron2 does it. "floats":
normalised pixels, each new one between four old ones, as py-faster-rcnn and bottom-up attention do
it with OpenCV.

Letters: B pictures, H x W pixels of a picture, h x w after resizing.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.detector.net_config import PictureConfig


class Prepared(NamedTuple):
    """A picture as the network takes it; bytes are still to be normalised."""

    pixels: Tensor  # [h, w, 3], red green blue, resized; uint8, or float32 and normalised
    height: int  # of the original picture, pixels
    width: int
    scale: tuple[float, float]  # x, y: original pixels to resized ones
    prompts: tuple[str, ...] = ()  # what a detector that is asked in words is to look for
    other_sizes: tuple[
        Prepared, ...
    ] = ()  # the same picture at `inference_scales` beyond the first

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) after resizing."""
        return self.pixels.shape[0], self.pixels.shape[1]


def prepare(picture: Tensor, config: PictureConfig) -> Prepared:
    """A picture uint8 RGB [H, W, 3], resized by the rule of `config`."""
    height, width = picture.shape[:2]
    size, scale = resized_size((height, width), config), scales((height, width), config)
    if config.resize == "pillow":
        return Prepared(resize(picture, size), height, width, scale)
    pixels = interpolate(_normalised(picture, *_statistics(config, picture.device)), size, scale)
    return Prepared(pixels, height, width, scale)


def enlarged(config: PictureConfig, factor: float) -> PictureConfig:
    """Of pictures `factor` times as large."""
    return dataclasses.replace(
        config,
        shorter_px=max(round(config.shorter_px * factor), 1),
        longer_px=max(round(config.longer_px * factor), 1),
    )


def resized_size(size: tuple[int, int], config: PictureConfig) -> tuple[int, int]:
    """(height, width) of a picture of `size` after resizing, at least 1; halves are rounded up by
    the rule "pillow", as in detectron2, and to even by the rule "floats", as in OpenCV."""
    height, width = size
    if config.resize == "floats":
        scale = _one_scale(size, config)
        return max(round(height * scale), 1), max(round(width * scale), 1)
    scale = config.shorter_px / min(size)
    if height < width:
        new_height, new_width = float(config.shorter_px), scale * width
    else:
        new_height, new_width = scale * height, float(config.shorter_px)
    if max(new_height, new_width) > config.longer_px:
        cut = config.longer_px / max(new_height, new_width)
        new_height, new_width = new_height * cut, new_width * cut
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def padded_size(size: tuple[int, int], bucket_px: int) -> tuple[int, int]:
    """(height, width) as multiples of `bucket_px`, at least those of `size`, in pixels."""
    height, width = size
    return -(-height // bucket_px) * bucket_px, -(-width // bucket_px) * bucket_px


def scales(size: tuple[int, int], config: PictureConfig) -> tuple[float, float]:
    """By how much boxes grow, along x and y, in a picture of `size` (height, width) that is
    resized: by what its sides do, or with the rule "floats" by one factor, before rounding."""
    if config.resize == "floats":
        return (_one_scale(size, config),) * 2
    new_height, new_width = resized_size(size, config)
    return new_width / size[1], new_height / size[0]


def _one_scale(size: tuple[int, int], config: PictureConfig) -> float:
    """py-faster-rcnn's factor (lib/utils/blob.py, prep_im_for_blob)."""
    scale = config.shorter_px / min(size)
    return config.longer_px / max(size) if round(scale * max(size)) > config.longer_px else scale


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """picture [H, W, 3] uint8 -> the same in `size` (height, width), by Pillow."""
    if tuple(picture.shape[:2]) == size:
        return picture
    height, width = size
    image = Image.fromarray(picture.numpy()).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))


def interpolate(picture: Tensor, size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    """picture [H, W, C] float32 -> [h, w, C], each pixel from the four old ones around it.

    size: h, w; scale: along x and y. It is the scale, not the size, that says where a new pixel
    lies in the old picture, as in cv2.resize(picture, None, fx=, fy=, interpolation=INTER_LINEAR).
    """
    for num_rows, factor in ((size[0], scale[1]), (size[1], scale[0])):
        last = picture.shape[0] - 1
        # In double, as OpenCV: with thousands of pixels, single precision would show.
        at = ((torch.arange(num_rows, dtype=torch.float64) + 0.5) / factor - 0.5).clamp(0, last)
        low = at.long()
        share = (at - low).float()[:, None, None]
        picture = (
            picture.index_select(0, low) * (1 - share)
            + picture.index_select(0, (low + 1).clamp(max=last)) * share
        )
        # Turned, as whole rows are gathered much faster than single pixels; twice is back.
        picture = picture.transpose(0, 1).contiguous()
    return picture


def _statistics(config: PictureConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of pixels, each [3]."""
    mean, deviation = torch.tensor([config.pixel_mean, config.pixel_std], device=device)
    return mean, deviation


def _normalised(picture: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """picture [H, W, 3] uint8 -> float32, the mean taken off and divided by the deviation."""
    return (picture.float() - mean) / deviation


def stack(
    pictures: list[Tensor],
    config: PictureConfig,
    device: torch.device,
    *,
    canvas: tuple[int, int] = (0, 0),
) -> Tensor:
    """Resized pictures [h_i, w_i, 3] -> [B, 3, h, w] float32, normalised, then padded.

    Bytes are normalised here, on `device`; float32 has been. h and w are the largest of the batch,
    and at least `canvas`; padding is zeros at the right and bottom.
    """
    height = max([canvas[0], *(picture.shape[0] for picture in pictures)])
    width = max([canvas[1], *(picture.shape[1] for picture in pictures)])
    batch = torch.zeros(len(pictures), height, width, 3, device=device)
    statistics = _statistics(config, device)
    for row, picture in zip(batch, pictures):
        there = picture.to(device, non_blocking=True)
        row[: picture.shape[0], : picture.shape[1]] = (
            _normalised(there, *statistics) if picture.dtype == torch.uint8 else there
        )
    # The memory order of the pictures is kept: channels last, as the network's weights are.
    return batch.permute(0, 3, 1, 2)
