"""Greedy non-maximum suppression by group (class or pyramid level), of many pictures at once.

Greedy suppression is a loop over boxes by definition: take the best box, drop what overlaps it,
go on. Here it is the fixed point of one vectorised step: "a box stays when no better box of its
group that stays overlaps it". Starting from "all stay", the step settles box after box in the
order of the scores, so it has exactly one fixed point, the greedy answer, and reaches it in as
many steps as the longest chain of boxes that suppress each other, which is a handful. Boxes come
in blocks, the best first, so that work ends when enough are kept. This is about as fast as
torchvision's loop where most boxes go, and faster where they stay
(benchmarks/detector/teacher_parts.py).

Pictures are rows of one matrix, so a batch takes as many operators as one picture; the rows of
pictures with fewer boxes are filled up with boxes that count for nothing.

Letters: N boxes of all pictures, B pictures, M boxes of a picture, at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stages.detector.ops.boxes import iou

# Boxes a block and picture. They bound the overlap matrix: on CPU it stays in the caches, elsewhere
# there are few kernels to start.
BLOCK_BOXES_CPU = 256
BLOCK_BOXES = 2048
# Steps between two checks for convergence: a check waits for the device.
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
    """Indices of the boxes of one picture that stay: `nms_of_pictures`."""
    kept, _ = nms_of_pictures(
        boxes,
        scores,
        groups,
        [len(boxes)],
        threshold=threshold,
        max_kept=max_kept,
        inclusive=inclusive,
    )
    return kept


def nms_of_pictures(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    counts: Sequence[int],
    *,
    threshold: float,
    max_kept: int | None = None,
    inclusive: bool = False,
) -> tuple[Tensor, list[int]]:
    """Indices of the boxes that stay, picture after picture, and how many are of each picture.

    Those of a picture are by falling score, of equal scores the lower index first. boxes [N, 4] in
    pixels, scores [N], groups [N] (int; only boxes of one picture and group compete); counts: how
    many of the N are of each picture, one after the other. A box goes when `pushes_out` says so of
    a better one that stays. `max_kept` ends the work once that many of every picture are found,
    or it has no more boxes: the first ones, unchanged.
    """
    on_cpu = boxes.device.type == "cpu"
    rows, is_box = _fill_up(_by_falling_score(scores, counts), counts)

    def suppresses(better: Tensor, worse: Tensor) -> Tensor:
        """Matrix [B, X, Y]: which boxes [B, X] push out which others [B, Y] (indices)."""
        goes = pushes_out(boxes[better], boxes[worse], threshold, inclusive=inclusive)
        return goes & (groups[better][:, :, None] == groups[worse][:, None])

    kept, is_kept, num_kept = rows[:, :0], is_box[:, :0], [0] * len(counts)
    size = BLOCK_BOXES_CPU if on_cpu else BLOCK_BOXES
    with torch.autocast(boxes.device.type, enabled=False):
        blocks = zip(rows.split(size, 1), is_box.split(size, 1))
        for num_seen, (block, is_left) in zip(itertools.count(0, size), blocks):
            if max_kept is not None and all(
                kept_here >= max_kept or count <= num_seen
                for kept_here, count in zip(num_kept, counts)
            ):
                break
            if max(num_kept) > 0:
                goes = suppresses(kept, block) & is_kept[:, :, None]
                block, is_left, _ = _only(block, is_left & ~goes.any(1))
            stays = _settle(suppresses(block, block), is_left)
            kept, is_kept, num_kept = _only(
                torch.cat([kept, block], 1), torch.cat([is_kept, stays], 1)
            )
    kept, is_kept = kept[:, :max_kept], is_kept[:, :max_kept]
    return kept[is_kept], [min(num, kept.shape[1]) for num in num_kept]


def _by_falling_score(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Indices [N] of the boxes, picture after picture, the best of each first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    if len(counts) == 1:
        return order
    pictures = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(scores.device)
    return order[pictures[order].sort(stable=True).indices]


def _fill_up(rows: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows [N] of all pictures as a row [M] a picture [B, M], and which of them there are."""
    if len(counts) == 1:
        return rows[None], torch.ones_like(rows, dtype=torch.bool)[None]
    on_host = torch.tensor(counts)
    num, start = torch.stack([on_host, on_host.cumsum(0) - on_host]).to(rows.device)[:, :, None]
    place = torch.arange(max(counts), device=rows.device)
    return rows[(start + place).clamp(max=max(len(rows) - 1, 0))], place < num


def _only(rows: Tensor, is_kept: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """What is kept of rows [B, M], filled up anew, which of them there are, and how many."""
    kept = rows[is_kept]
    num_kept = [len(kept)] if len(rows) == 1 else is_kept.sum(1).tolist()
    return *_fill_up(kept, num_kept), num_kept


def pushes_out(
    better: Tensor, worse: Tensor, threshold: float, *, inclusive: bool = False
) -> Tensor:
    """Matrix [.., X, Y]: which of the boxes `better` [.., X, 4] would push out which of `worse`
    [.., Y, 4].

    Boxes do so whose overlap is above `threshold`, as in detectron2; of `inclusive` boxes also
    those whose overlap equals it, as in py-faster-rcnn's and bottom-up attention's CPU code.
    """
    overlap = iou(better, worse, inclusive=inclusive)
    if inclusive:
        return overlap >= threshold  # their threshold is a number of single precision, as here
    if overlap.dtype == torch.float32:
        threshold = _single_not_above(threshold)
    return overlap > threshold


def _single_not_above(threshold: float) -> float:
    """The largest number of single precision that is not above the threshold: to compare with it
    is to compare in double, as torchvision does. (0.3 in single precision is above 0.3.)"""
    rounded = np.float32(threshold)
    return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, -np.inf))


def _settle(suppresses: Tensor, is_left: Tensor) -> Tensor:
    """Mask [B, M] of the boxes that stay among those left [B, M]; `suppresses` [B, M, M] is by
    falling score."""
    pushes = suppresses.triu(diagonal=1).float()
    left = is_left.float()[:, None]
    stays = left
    num_steps = STEPS_A_LOOK_CPU if pushes.device.type == "cpu" else STEPS_A_LOOK
    while True:
        before = stays
        for _ in range(num_steps):
            # 1 less those that push a box out, at least 0: exact for counts this small.
            before, stays = stays, torch.baddbmm(left, stays, pushes, alpha=-1).clamp_(min=0)
        if torch.equal(before, stays):
            return stays[:, 0].bool()
