"""Chooses the objects of a picture, by the rule of detectron2 or of bottom-up attention.

Letters: P proposals, L labels (background not counted), N candidates, K objects chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxless.errors import BoxlessError
from stages.detector.net_config import ChoiceConfig
from stages.detector.ops.boxes import NOT_FINITE
from stages.detector.ops.nms import nms, nms_of_pictures, pushes_out


def label_scores(probabilities: Tensor, objectness: Tensor, choice: ChoiceConfig) -> Tensor:
    """What each proposal scores for each label [P, L], from the softmax [P, L] and the proposal
    network's logits [P]."""
    if choice.objectness_power == 0:
        return probabilities
    return probabilities * objectness.sigmoid()[:, None] ** choice.objectness_power


def candidates(scores: Tensor, choice: ChoiceConfig) -> tuple[Tensor, Tensor]:
    """Proposal [N] and label [N] (int64) of every pair scoring above the threshold, by proposal.

    scores [P, L]. They are a few in a thousand, so their boxes alone need be computed.
    """
    proposal, label = torch.nonzero(scores > choice.score_threshold, as_tuple=True)
    return proposal, label


def detections_of_pictures(
    boxes: Tensor, scores: Tensor, labels: Tensor, counts: list[int], choice: ChoiceConfig
) -> tuple[Tensor, list[int]]:
    """`detections` of several pictures' candidates, picture after picture, and how many are of
    each picture; counts: how many candidates are."""
    return nms_of_pictures(
        boxes, scores, labels, counts, threshold=choice.iou, max_kept=choice.max_objects
    )


def detections(boxes: Tensor, scores: Tensor, labels: Tensor, choice: ChoiceConfig) -> Tensor:
    """Those of the candidates [N] that are objects: their numbers [K] (int64), by falling score.

    boxes [N, 4]: what `candidates` found, each regressed for its label, and clipped; scores [N];
    labels [N]. A proposal may give several objects. detectron2's rule
    (modeling/roi_heads/fast_rcnn.py): candidates are suppressed within their label, and the best
    `max_objects` stay; of equal scores, the earlier one. Boxes that lay outside the picture and are
    empty now take their places, as there; who writes the objects down drops them.
    """
    return nms(boxes, scores, labels, threshold=choice.iou, max_kept=choice.max_objects)


def best_proposals(boxes: Tensor, probabilities: Tensor, choice: ChoiceConfig) -> Tensor:
    """The proposals [K] (int64) that are objects themselves.

    boxes [P, 4]: the proposals, in pixels of the original picture (suppression adds a pixel to
    their sides, so their scale matters); probabilities [P, L].

    The rule of Anderson et al., 2018 (https://arxiv.org/abs/1707.07998), as their
    tools/generate_tsv.py and MILVLG/bottom-up-attention.pytorch (utils/extract_utils.py) have it:
    what counts for a proposal is its best score among the labels in which it survives
    suppression. Those with the threshold or more are chosen, in the order of the proposals; if
    they are fewer than `min_objects`, the best so many are, by falling score, and if more than
    `max_objects`, the best so many.
    """
    num_wanted = min(choice.min_objects, len(boxes))
    # Scores that decide nothing are passed over, which leaves few labels; seldom are all needed.
    for floor in (choice.score_threshold, choice.score_threshold / 10, 0.0):
        scores = best_surviving_scores(boxes, probabilities, iou=choice.iou, floor=floor)
        if int((scores >= floor).sum()) >= num_wanted:
            break
    chosen = torch.nonzero(scores >= choice.score_threshold).flatten()
    if len(chosen) < num_wanted or len(chosen) > choice.max_objects:
        num_best = num_wanted if len(chosen) < num_wanted else choice.max_objects
        chosen = torch.sort(scores, descending=True, stable=True).indices[:num_best]
    return chosen


def best_surviving_scores(
    boxes: Tensor, probabilities: Tensor, *, iou: float, floor: float = 0.0
) -> Tensor:
    """Each proposal's best probability [P] of those labels in which it survives suppression.

    boxes [P, 4] in pixels, the last one counting; probabilities [P, L]; `iou`: overlap with a
    better box of a label from which a box goes. Probabilities below `floor` count as 0, which
    changes no others, since what pushes a box out has a higher one. ValueError for NaN.
    """
    is_used = probabilities >= floor
    any_used, any_nan = torch.stack([is_used.any(), probabilities.isnan().any()]).tolist()
    if any_nan:
        raise BoxlessError(NOT_FINITE)
    if not any_used:
        return probabilities.new_zeros(len(boxes))
    labels = torch.nonzero(is_used.any(0)).flatten()
    scores = probabilities[:, labels].T.contiguous()  # [labels, P]
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    # All labels at once, from each the best box first, then the second: if it is still there,
    # what it overlaps goes. Rows of `leaves`: what a box leaves, then, as often, everything.
    goes = pushes_out(boxes, boxes, iou, inclusive=True).fill_diagonal_(False)
    leaves = torch.cat([~goes, torch.ones_like(goes)])
    stays = torch.ones_like(scores, dtype=torch.bool)
    num_ranks = int(is_used.sum(0).max())
    for best in order.T[:num_ranks].contiguous():
        is_gone = ~stays.gather(1, best[:, None])[:, 0]
        stays &= leaves.index_select(0, best + len(boxes) * is_gone)
    return (scores * (stays & (scores >= floor))).amax(0)
