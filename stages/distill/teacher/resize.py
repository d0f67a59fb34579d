"""From decoded pictures of any size to the tensor that the network takes.

Reached from `detect.py` and `training_set.py`. Resizing is Pillow's bilinear filter on bytes, as
detectron2 does it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.distill.teacher.net_config import PictureConfig


class Prepared(NamedTuple):
    """A picture as the network takes it, but for being normalised."""

    pixels: Tensor  # [h, w, 3], uint8 or float32, red green blue, resized
    height: int  # of the original picture, pixels
    width: int
    scale: tuple[float, float]  # x, y: original pixels to resized ones

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) after resizing."""
        return self.pixels.shape[0], self.pixels.shape[1]


def prepare(picture: Tensor, config: PictureConfig) -> Prepared:
    """A picture uint8 RGB [H, W, 3], resized."""
    height, width = picture.shape[:2]
    size = resized_size((height, width), config)
    return Prepared(resize(picture, size), height, width, (size[1] / width, size[0] / height))


def resized_size(size: tuple[int, int], config: PictureConfig) -> tuple[int, int]:
    """(height, width) of a picture of `size` after resizing, detectron2's rounding, at least 1."""
    height, width = size
    scale = config.shorter_px / min(size)
    if height < width:
        new_height, new_width = float(config.shorter_px), scale * width
    else:
        new_height, new_width = scale * height, float(config.shorter_px)
    if max(new_height, new_width) > config.longer_px:
        cut = config.longer_px / max(new_height, new_width)
        new_height, new_width = new_height * cut, new_width * cut
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """picture [H, W, 3] uint8 -> the same in `size` (height, width)."""
    if tuple(picture.shape[:2]) == size:
        return picture
    height, width = size
    image = Image.fromarray(picture.numpy()).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))


def stack(pictures: list[Tensor], config: PictureConfig, device: torch.device) -> Tensor:
    """Resized pictures [H_i, W_i, 3] uint8 -> [B, 3, H, W] float32, normalised, then padded.

    H and W are the largest of the batch; padding is zeros at the right and bottom.
    """
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    mean, std = torch.tensor(config.pixel_mean), torch.tensor(config.pixel_std)
    batch = torch.zeros(len(pictures), height, width, 3)
    for row, picture in zip(batch, pictures):
        row[:picture.shape[0], :picture.shape[1]] = (picture.float() - mean) / std
    # The memory order of the pictures is kept: channels last, as the network's weights are.
    return batch.to(device).permute(0, 3, 1, 2)
