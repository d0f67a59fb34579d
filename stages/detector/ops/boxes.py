"""Arithmetic on boxes: overlap, deltas between boxes, clipping. Used by every other part.

Boxes are float tensors [N, 4] of x0, y0, x1, y1 in pixels, the far edge exclusive (a box's width
is x1 - x0). Deltas are dx, dy, dw, dh of R-CNN (Girshick et al., 2014, appendix C), scaled by
weights as in Fast R-CNN.

`inclusive` boxes are those of Caffe's R-CNN family, whose last pixel counts: a width is
x1 - x0 + 1 and a picture ends at w - 1, h - 1. Sums are in the order of detectron2's, and of
py-faster-rcnn's where inclusive, so that they round alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A box may grow by at most this factor (1000 px from a 16 px anchor), so that a wild prediction
# early in training does not overflow exp(). detectron2's number, above only.
MAX_LOG_SCALE = math.log(1000.0 / 16)
NOT_FINITE = "got boxes or scores that are not finite, expected finite numbers"
"""Of one picture, or one of a batch. Comparisons with NaN are false, so such candidates would pass
for objects that are not there."""


def sides(boxes: Tensor, *, inclusive: bool = False) -> Tensor:
    """Widths and heights [..., 2] in pixels of boxes [..., 4]."""
    extent = boxes[..., 2:] - boxes[..., :2]
    return extent + 1 if inclusive else extent


def area(boxes: Tensor, *, inclusive: bool = False) -> Tensor:
    """Areas [...] in square pixels of boxes [..., 4]; 0 where a side is negative."""
    extent = sides(boxes, inclusive=inclusive).clamp(min=0)
    return extent[..., 0] * extent[..., 1]


def iou(first: Tensor, second: Tensor, *, inclusive: bool = False) -> Tensor:
    """Intersection over union [.., N, M] of boxes [.., N, 4] and [.., M, 4]; 0 where the union is
    empty."""
    # Columns as rows of memory, and no new matrix where an old one is done with: on CPU, half the
    # time.
    ours = first.transpose(-1, -2).contiguous()[..., :, None].unbind(-3)
    others = second.transpose(-1, -2).contiguous()[..., None, :].unbind(-3)

    def area_between(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor) -> Tensor:
        width, height = x1 - x0, y1 - y0
        if inclusive:
            width, height = width.add_(1), height.add_(1)
        return width.clamp_(min=0).mul_(height.clamp_(min=0))

    low = [torch.maximum(ours[axis], others[axis]) for axis in (0, 1)]
    high = [torch.minimum(ours[axis], others[axis]) for axis in (2, 3)]
    overlap = area_between(*low, *high)
    union = (area_between(*ours) + area_between(*others)).sub_(overlap)
    return torch.where(overlap > 0, overlap / union, 0.0)


def encode(
    references: Tensor, targets: Tensor, weights: tuple[float, float, float, float]
) -> Tensor:
    """Deltas [N, 4] that turn `references` [N, 4] (sides above 0) into `targets` [N, 4]."""
    reference_sides = references[:, 2:] - references[:, :2]
    target_sides = targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - references[:, :2] - references[:, 2:]) / 2
    deltas = torch.cat([shift / reference_sides, torch.log(target_sides / reference_sides)], 1)
    return deltas * deltas.new_tensor(weights)


def decode(
    references: Tensor,
    deltas: Tensor,
    weights: tuple[float, float, float, float],
    *,
    inclusive: bool = False,
) -> Tensor:
    """Boxes [N, K * 4] from `references` [N, 4] and `deltas` [N, K * 4] (K boxes a reference).

    An inclusive box comes out as wide as it was predicted, thus a pixel too wide, as in Caffe.
    """
    scaled = deltas.unflatten(1, (-1, 4)) / deltas.new_tensor(weights)
    extent = sides(references, inclusive=inclusive)[:, None]
    centers = references[:, None, :2] + extent / 2
    centers = centers + scaled[..., :2] * extent
    half_extent = scaled[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * extent / 2
    return torch.cat([centers - half_extent, centers + half_extent], 2).reshape(deltas.shape)


def clip(boxes: Tensor, size: tuple[int, int], *, inclusive: bool = False) -> Tensor:
    """Boxes [..., 4] cut to a picture of `size` (height, width) in pixels."""
    return clip_to(boxes, far_corners(boxes, [size])[0], inclusive=inclusive)


def far_corners(boxes: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """The corner of each picture of `sizes` (height, width) that boxes are cut to, as [B, 4]:
    width, height, width, height. Of the type and on the device of `boxes`."""
    return boxes.new_tensor([(width, height) * 2 for height, width in sizes])


def clip_to(boxes: Tensor, corners: Tensor, *, inclusive: bool = False) -> Tensor:
    """Boxes [..., 4] cut to their pictures, whose `far_corners` [..., 4] are theirs."""
    return boxes.clamp(min=0).minimum(corners - 1 if inclusive else corners)


def is_nonempty(boxes: Tensor) -> Tensor:
    """Mask [...]: which boxes [..., 4] have two sides above 0."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)
