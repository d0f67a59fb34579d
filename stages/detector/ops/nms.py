"""Greedy non-maximum suppression by group (class or pyramid level). Used by the proposals
(`rpn.py`) and by the final choice of objects (`choose.py`).

Greedy suppression is a loop over boxes by definition: take the best box, drop what overlaps it,
go on. Here it is the fixed point of one vectorised step: "a box stays when no better box of its
group that stays overlaps it". Starting from "all stay", the step settles box after box in the
order of the scores, so it has exactly one fixed point, the greedy answer, and reaches it in as
many steps as the longest chain of boxes that suppress each other, which is a handful. Boxes come
in blocks, the best first, so that work ends when enough are kept. This is about as fast as
torchvision's loop where most boxes go, and faster where they stay
(benchmarks/detector/teacher_parts.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.detector.ops.boxes import iou

# Boxes a block. They bound the overlap matrix: on CPU it stays in the caches, elsewhere there are
# few kernels to start.
BLOCK_BOXES_CPU = 256
BLOCK_BOXES = 4096
# Steps from one look at whether all is settled to the next: a look waits for a device.
STEPS_A_LOOK_CPU = 1
STEPS_A_LOOK = 4


def nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    threshold: float,
    max_kept: int | None = None,
    inclusive: bool = False,
) -> Tensor:
    """Indices of the boxes that stay, by falling score, of equal scores the lower index first.

    boxes [N, 4] in pixels, scores [N], groups [N] (int; only boxes of one group compete). A box
    goes when `pushes_out` says so of a better one that stays. `max_kept` ends the work once that
    many are found: the first ones, unchanged.
    """
    order = torch.sort(scores, descending=True, stable=True).indices

    def suppresses(better: Tensor, worse: Tensor) -> Tensor:
        """Matrix [B, W]: which of some boxes push out which of others (indices)."""
        goes = pushes_out(boxes[better], boxes[worse], threshold, inclusive=inclusive)
        return goes & (groups[better][:, None] == groups[worse])

    kept = order[:0]
    for block in order.split(BLOCK_BOXES_CPU if boxes.device.type == "cpu" else BLOCK_BOXES):
        if max_kept is not None and len(kept) >= max_kept:
            break
        if len(kept) > 0:
            block = block[~suppresses(kept, block).any(0)]
        kept = torch.cat([kept, block[_settle(suppresses(block, block))]])
    return kept[:max_kept]


def pushes_out(
    better: Tensor, worse: Tensor, threshold: float, *, inclusive: bool = False
) -> Tensor:
    """Matrix [B, W]: which of the boxes `better` [B, 4] would push out which of `worse` [W, 4].

    Boxes do so whose overlap is above `threshold`, as in detectron2; of `inclusive` boxes also
    those whose overlap equals it, as in py-faster-rcnn's and bottom-up attention's CPU code.
    """
    overlap = iou(better, worse, inclusive=inclusive)
    if inclusive:
        return overlap >= threshold  # their threshold is a number of single precision, as here
    # Compared in double, as torchvision does: 0.3 in single precision is above 0.3.
    return overlap.double() > threshold


def _settle(suppresses: Tensor) -> Tensor:
    """Mask [N] of the boxes that stay among themselves; `suppresses` [N, N] is by falling score."""
    pushes = suppresses.triu(diagonal=1).float()
    stays = torch.ones(len(pushes), device=pushes.device)
    num_steps = STEPS_A_LOOK_CPU if pushes.device.type == "cpu" else STEPS_A_LOOK
    while True:
        before = stays
        for _ in range(num_steps):
            # A product counts, for each box, those that push it out; counts this small are exact.
            before, stays = stays, (stays @ pushes == 0).float()
        if torch.equal(before, stays):
            return stays.bool()
