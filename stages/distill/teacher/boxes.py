"""Arithmetic on boxes: overlap, deltas between boxes, clipping. Used by every other part.

Boxes are float tensors [N, 4] of x0, y0, x1, y1 in pixels, the far edge exclusive (a box's width
is x1 - x0). Deltas are dx, dy, dw, dh of R-CNN (Girshick et al., 2014, appendix C), scaled by
weights as in Fast R-CNN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A box may grow by at most this factor (1000 px from a 16 px anchor), so that a wild prediction
# early in training does not overflow exp(). detectron2's number, above only.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def area(boxes: Tensor) -> Tensor:
    """Areas [...] in square pixels of boxes [..., 4]; 0 where a side is negative."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union [N, M] of boxes [N, 4] and [M, 4]; 0 where the union is empty."""
    corner_min = torch.maximum(first[:, None, :2], second[None, :, :2])
    corner_max = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = (corner_max - corner_min).clamp(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    union = area(first)[:, None] + area(second)[None, :] - overlap
    return torch.where(overlap > 0, overlap / union, torch.zeros_like(overlap))


def encode(references: Tensor, targets: Tensor, weights: tuple[float, float, float, float]
           ) -> Tensor:
    """Deltas [N, 4] that turn `references` [N, 4] (sides above 0) into `targets` [N, 4]."""
    reference_sides = references[:, 2:] - references[:, :2]
    target_sides = targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - references[:, :2] - references[:, 2:]) / 2
    deltas = torch.cat([shift / reference_sides, torch.log(target_sides / reference_sides)], 1)
    return deltas * deltas.new_tensor(weights)


def decode(references: Tensor, deltas: Tensor, weights: tuple[float, float, float, float]
           ) -> Tensor:
    """Boxes [N, K * 4] from `references` [N, 4] and `deltas` [N, K * 4] (K boxes a reference)."""
    scaled = deltas.unflatten(1, (-1, 4)) / deltas.new_tensor(weights)
    sides = (references[:, 2:] - references[:, :2])[:, None]
    centers = references[:, None, :2] + sides / 2
    centers = centers + scaled[..., :2] * sides
    half_sides = scaled[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * sides / 2
    return torch.cat([centers - half_sides, centers + half_sides], 2).reshape(deltas.shape)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] cut to a picture of `size` (height, width) in pixels."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def is_nonempty(boxes: Tensor) -> Tensor:
    """Mask [...]: which boxes [..., 4] have two sides above 0."""
    return ((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1]))
