"""Matches anchors and proposals with true boxes, and samples those of the loss.

Rules of Faster R-CNN as detectron2 has them.

Letters: N candidates (anchors or proposals) of one picture, G its true objects.
"""

from __future__ import annotations

import torch
from torch import Tensor

OBJECT, BACKGROUND, NEITHER = 1, 0, -1


def match(overlap: Tensor, *, low: float, high: float, best_always: bool) -> tuple[Tensor, Tensor]:
    """Nearest object [N] (int64) and verdict [N] (OBJECT, BACKGROUND or NEITHER) of each candidate.

    overlap [N, G] is the IoU. A candidate is OBJECT from `high` on and BACKGROUND below `low`. With
    `best_always` the candidates that overlap an object most are OBJECT whatever their IoU, so
    that an object of an odd size has an anchor; the nearest object of such a candidate may be
    another one.
    """
    num_candidates, num_objects = overlap.shape
    if num_objects == 0:
        nothing = torch.zeros(num_candidates, dtype=torch.long, device=overlap.device)
        return nothing, torch.full_like(nothing, BACKGROUND)
    best, nearest = overlap.max(1)
    verdict = torch.full_like(nearest, NEITHER)
    verdict[best < low] = BACKGROUND
    verdict[best >= high] = OBJECT
    if best_always and num_candidates > 0:
        best_of_object = overlap.max(0).values
        # An object that meets no candidate has a best of 0, which all others share.
        is_best = (overlap == best_of_object) & (best_of_object > 0)
        verdict[is_best.any(1)] = OBJECT
    return nearest, verdict


def sample(verdict: Tensor, *, num: int, share: float, random: torch.Generator) -> Tensor:
    """Indices of at most `num` candidates for the loss, drawn by `random` (a CPU generator).

    At most `num * share` of them are OBJECT, the rest BACKGROUND; the objects come first.
    """
    order = torch.randperm(len(verdict), generator=random).to(verdict.device)
    shuffled = verdict[order]
    objects = order[shuffled == OBJECT][: int(num * share)]
    ground = order[shuffled == BACKGROUND][: num - len(objects)]
    return torch.cat([objects, ground])
