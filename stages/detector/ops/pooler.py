"""Pools each box's features from the pyramid level that suits its size.

Rule of Feature Pyramid Networks, Lin et al., 2017, equation 1 (https://arxiv.org/abs/1612.03144):
a box of 224 pixels a side reads the map of stride 16, one half as wide that of stride 8, and so
on; a single level serves all boxes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stages.detector.ops.boxes import area
from stages.detector.ops.roi_align import roi_align

CANONICAL_BOX_PX = 224.0  # side of a box that reads the map of CANONICAL_STRIDE_PX
CANONICAL_STRIDE_PX = 16


class Level(NamedTuple):
    """One feature map of a batch and the pixels of the network's input that a cell spans."""

    feature: Tensor  # [B, C, H, W]
    stride: int


def pick_levels(
    boxes: Tensor, strides: list[int], canonical_box_px: float = CANONICAL_BOX_PX
) -> Tensor:
    """Which of the maps with `strides` (pixels, each double the last) a box reads: [R], int64."""
    scale = torch.log2(area(boxes).sqrt() / canonical_box_px + 1e-8)
    level = torch.floor(math.log2(CANONICAL_STRIDE_PX) + scale)
    first, last = math.log2(strides[0]), math.log2(strides[-1])
    return (level.clamp(first, last) - first).long()


def picture_of_boxes(boxes: list[Tensor]) -> Tensor:
    """Which picture each box lies on [R] (int64), of `boxes`, one [R_i, 4] a picture."""
    counts = torch.tensor([len(some) for some in boxes])
    return torch.arange(len(boxes)).repeat_interleave(counts).to(boxes[0].device)


def pool(
    levels: list[Level],
    boxes: list[Tensor],
    *,
    num_bins: int,
    sampling_ratio: int,
    canonical_box_px: float = CANONICAL_BOX_PX,
) -> Tensor:
    """Features [R, C, P, P] of all boxes, picture after picture.

    boxes: one [R_i, 4] a picture in pixels of the network's input, R their sum.
    """
    all_boxes, picture_index = torch.cat(boxes), picture_of_boxes(boxes)
    if len(levels) == 1:
        return roi_align(
            levels[0].feature,
            all_boxes,
            picture_index,
            stride=levels[0].stride,
            num_bins=num_bins,
            sampling_ratio=sampling_ratio,
        )
    chosen = pick_levels(all_boxes, [level.stride for level in levels], canonical_box_px)
    num_channels = levels[0].feature.shape[1]
    pooled = levels[0].feature.new_zeros(len(all_boxes), num_channels, num_bins, num_bins)
    for index, level in enumerate(levels):
        rows = torch.nonzero(chosen == index).flatten()
        part = roi_align(
            level.feature,
            all_boxes[rows],
            picture_index[rows],
            stride=level.stride,
            num_bins=num_bins,
            sampling_ratio=sampling_ratio,
        )
        pooled = pooled.index_copy(0, rows, part)
    return pooled
