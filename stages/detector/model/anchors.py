"""Anchors: the reference boxes of the proposal network, laid out over each level's cells.

Faster R-CNN, Ren et al., 2015 (https://arxiv.org/abs/1506.01497), laid out as detectron2 does
with offset 0: an anchor's middle is the top left corner of its cell.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cell_anchors(sizes_px: tuple[float, ...], ratios: tuple[float, ...]) -> Tensor:
    """Anchors [A, 4] around the origin, sizes first: A = len(sizes) * len(ratios).

    A size is the side of the square with the anchor's area; a ratio is height over width.
    """
    boxes = []
    for size in sizes_px:
        for ratio in ratios:
            width = (size * size / ratio) ** 0.5
            height = ratio * width
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(boxes)


def grid_anchors(cell: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Anchors [H * W * A, 4] in pixels for a map of `grid` (H, W) cells: by row, column, anchor.

    cell: [A, 4] of `cell_anchors`; stride: pixels a cell.
    """
    height, width = grid
    x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride
    y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shift = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
    return (shift + cell).view(-1, 4)
