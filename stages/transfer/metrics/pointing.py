"""Phrase grounding: the pointing game, and recall of boxes proposed from a heat map.

Boxes are xyxy as shares of the picture's width and height, so that sizes do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Box = Sequence[float]
IOU = 0.5
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def is_hit(point: Sequence[float], boxes: Sequence[Box]) -> bool:
    """Whether a point (x, y) lies in one of the boxes, right and lower edges excluded."""
    x, y = point
    return any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in boxes)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both) if both else 0.0


def is_recalled(proposals: Sequence[Box], boxes: Sequence[Box]) -> bool:
    """Whether a proposal overlaps one of a phrase's boxes by half or more (the any-box rule)."""
    return any(iou(proposal, box) >= IOU for proposal in proposals for box in boxes)


def propose_boxes(heat: torch.Tensor, cell: tuple[float, float], *, most: int) -> list[list[float]]:
    """Boxes around what is hot in heat [rows, columns], best first, no two alike.

    For each threshold, a share of the hottest cell, the boxes of the connected cells at or above
    it; scored by the heat that they hold over the root of their size. `cell`: width and height of a
    cell, as shares of the picture.
    """
    top = float(heat.max())
    scored: dict[tuple[int, int, int, int], float] = {}
    for threshold in THRESHOLDS:
        for r1, c1, r2, c2 in _components(heat >= threshold * top):
            inside = heat[r1 : r2 + 1, c1 : c2 + 1]
            scored[r1, c1, r2, c2] = float(inside.sum()) / inside.numel() ** 0.5
    kept: list[list[float]] = []
    for (r1, c1, r2, c2), _ in sorted(scored.items(), key=lambda item: (-item[1], item[0])):
        box = [c1 * cell[0], r1 * cell[1], (c2 + 1) * cell[0], (r2 + 1) * cell[1]]
        kept.append([min(1.0, edge) for edge in box])
        if len(kept) == most:
            break
    return kept


def _components(hot: torch.Tensor) -> list[tuple[int, int, int, int]]:
    """First row, first column, last row, last column of each set of cells that touch by a side."""
    left = {(r, c) for r, c in hot.nonzero().tolist()}
    found = []
    while left:
        reached = [left.pop()]
        for r, c in reached:  # grows while it is gone through
            for beside in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if beside in left:
                    left.remove(beside)
                    reached.append(beside)
        rows, columns = zip(*reached)
        found.append((min(rows), min(columns), max(rows), max(columns)))
    return found
