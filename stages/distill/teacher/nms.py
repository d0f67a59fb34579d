"""Greedy non-maximum suppression by group (class or pyramid level). Used by the proposals
(`rpn.py`) and by the final choice of objects (`heads.py`).

Greedy suppression is a loop over boxes by definition: take the best box, drop what overlaps it,
go on. Here it is the fixed point of one vectorised step: "a box stays when no better box of its
group that stays overlaps it". Starting from "all stay", the step settles box after box in the
order of the scores, so it has exactly one fixed point, the greedy answer, and reaches it in as
many steps as the longest chain of boxes that suppress each other, which is a handful.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.distill.teacher.boxes import iou
from stages.distill.teacher.torchvision_ops import find_torchvision_ops

BLOCK_BOXES = 1024  # bounds the overlap matrix; boxes beyond meet only those already kept


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, *, threshold: float,
        max_kept: int | None = None) -> Tensor:
    """Indices of the boxes that stay, by falling score, of equal scores the lower index first.

    boxes [N, 4] in pixels, scores [N], groups [N] (int; only boxes of one group compete). A box
    goes when its overlap with a better one that stays is above `threshold` (equal stays, as in
    detectron2). `max_kept` ends the work once that many are found: the first ones, unchanged.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    ops = find_torchvision_ops()
    if ops is not None and len(order) > 0:
        return order[_nms_torchvision(ops, boxes[order], groups[order], threshold)][:max_kept]
    kept = order[:0]
    for block in order.split(BLOCK_BOXES):
        if max_kept is not None and len(kept) >= max_kept:
            break
        if len(kept) > 0:
            block = block[~_suppresses(boxes, groups, kept, block, threshold).any(0)]
        kept = torch.cat([kept, block[_settle(boxes, groups, block, threshold)]])
    return kept[:max_kept]


def _suppresses(boxes: Tensor, groups: Tensor, better: Tensor, worse: Tensor, threshold: float
                ) -> Tensor:
    """Matrix [B, W]: which of the boxes `better` [B] push out which of `worse` [W] (indices)."""
    # Compared in double, as torchvision does: 0.3 in single precision is above 0.3.
    overlap = iou(boxes[better], boxes[worse]).double() > threshold
    return overlap & (groups[better][:, None] == groups[worse][None, :])


def _settle(boxes: Tensor, groups: Tensor, block: Tensor, threshold: float) -> Tensor:
    """Mask [W] of the boxes of `block` (indices by falling score) that stay among themselves."""
    suppresses = _suppresses(boxes, groups, block, block, threshold).triu_(diagonal=1).float()
    stays = torch.ones(len(block), device=boxes.device)
    while True:
        # A product counts, for each box, those that push it out; counts this small are exact.
        settled = (stays @ suppresses == 0).float()
        if torch.equal(settled, stays):
            return stays.bool()
        stays = settled


def _nms_torchvision(ops: object, boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """torchvision's kernel on boxes already sorted: groups are moved apart, in float64 so that
    the shift does not round coordinates (torchvision's own batched_nms shifts in float32)."""
    wide = boxes.double()
    span = wide.max() - wide.min() + 1
    shifted = wide + (groups.double() * span)[:, None]
    falling = torch.arange(len(boxes), 0, -1, dtype=torch.float64, device=boxes.device)
    return ops.nms(shifted, falling, threshold)  # type: ignore[attr-defined]
