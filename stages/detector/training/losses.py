"""The five losses of Faster R-CNN with attributes.

Ren et al., 2015 (https://arxiv.org/abs/1506.01497), section 3.1, and Anderson et al., 2018, with
detectron2's choices: L1 on box deltas, class-specific boxes, true boxes among the proposals,
every loss divided by the number of candidates that could enter it, so that a picture with few
objects weighs as much as one with many.

Letters: B pictures, N anchors of a picture, G true objects of a picture, R sampled proposals of
the whole batch, L labels (background is number L).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from stages.detector.model.faster_rcnn import FasterRCNN
from stages.detector.model.rpn import DELTA_WEIGHTS, AnchorScores, Proposals
from stages.detector.ops.boxes import encode, iou
from stages.detector.ops.pooler import Level
from stages.detector.training.config import TeachConfig
from stages.detector.training.labeled_pictures import NO_ATTRIBUTE, Truth
from stages.detector.training.matching import OBJECT, match, sample
from stages.detector.training.training_set import Batch
from stages.distributed import Ranks


class Regions(NamedTuple):
    """Sampled boxes of one picture and what they should become."""

    boxes: Tensor  # [R_i, 4], pixels
    labels: Tensor  # [R_i], L where there is no object
    targets: Tensor  # [R_i, 4], the object's box; anything where there is none
    attributes: Tensor  # [R_i], NO_ATTRIBUTE where there is none


def detection_losses(
    model: FasterRCNN,
    batch: Batch,
    config: TeachConfig,
    randoms: Sequence[torch.Generator],
    ranks: Ranks = Ranks(),
) -> dict[str, Tensor]:
    """Losses by name, scalars: objectness, anchor_box, label, box and attribute.

    `randoms` (on the CPU), one a picture, draw which anchors and proposals are used. Of a batch
    that several ranks share they are this rank's part: the loss is their sum over the ranks. A
    collective.
    """
    maps = model.maps(batch.pictures)
    if not batch.keys:
        return _no_losses(model, maps.levels, ranks)
    scores = model.proposal_network(maps.levels)
    objectness, anchor_box = _anchor_losses(scores, batch, config, randoms)
    proposals = model.proposal_network.propose(scores, batch.sizes)
    regions = [
        _pick_regions(some, truth, model.num_labels, config, random)
        for some, truth, random in zip(proposals, batch.truths, randoms, strict=True)
    ]
    looked = model.look(maps, [some.boxes for some in regions])
    deltas = looked.deltas
    boxes, labels, targets, attributes = (torch.cat(parts) for parts in zip(*regions))
    rows = torch.nonzero(labels < model.num_labels).flatten()
    # Chosen before encoding: a proposal on the ground has no object to have deltas to.
    wanted = encode(boxes[rows], targets[rows], model.config.boxes.delta_weights)
    with_attribute = torch.nonzero(attributes != NO_ATTRIBUTE).flatten()
    own_counts = torch.tensor([len(labels), len(with_attribute)], device=deltas.device)
    num_regions, num_attributes = ranks.total(own_counts).clamp(min=1).unbind()
    losses = {
        "objectness": objectness,
        "anchor_box": anchor_box,
        "label": functional.cross_entropy(looked.logits, labels, reduction="sum") / num_regions,
        "box": (deltas[rows, labels[rows]] - wanted).abs().sum() / num_regions,
    }
    if looked.second is not None:
        losses["second_label"] = (
            functional.cross_entropy(looked.second, labels, reduction="sum") / num_regions
        )
    if model.attribute_predictor is not None:
        rows = with_attribute
        guesses = model.attribute_predictor(looked.features[rows], labels[rows])
        losses["attribute"] = (
            functional.cross_entropy(guesses, attributes[rows], reduction="sum") / num_attributes
        )
    return losses


def _no_losses(model: FasterRCNN, levels: list[Level], ranks: Ranks) -> dict[str, Tensor]:
    """The part of a rank that has no picture: zeros, whose gradients are too. A collective."""
    ranks.total(torch.zeros(2, dtype=torch.long, device=levels[0].feature.device))
    weights = [parameter.sum() for parameter in model.parameters() if parameter.requires_grad]
    nothing = torch.stack([*weights, *(level.feature.float().sum() for level in levels)]).sum() * 0
    names = ["objectness", "anchor_box", "label", "box"]
    names += ["second_label"] if model.second_classifier is not None else []
    names += ["attribute"] if model.attribute_predictor is not None else []
    return dict.fromkeys(names, nothing)


def _anchor_losses(
    scores: list[AnchorScores],
    batch: Batch,
    config: TeachConfig,
    randoms: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of object or ground, and L1 of the deltas of the anchors on objects."""
    anchors = torch.cat([level.anchors for level in scores])
    logits = torch.cat([level.logits for level in scores], 1)
    deltas = torch.cat([level.deltas for level in scores], 1)
    objectness, anchor_box = logits.float().sum() * 0, deltas.float().sum() * 0
    for index, (truth, random) in enumerate(zip(batch.truths, randoms, strict=True)):
        nearest, verdict = match(
            iou(anchors, truth.boxes),
            low=config.anchor_iou_low,
            high=config.anchor_iou_high,
            best_always=True,
        )
        chosen = sample(verdict, num=config.num_anchors, share=config.anchor_share, random=random)
        is_object = verdict[chosen] == OBJECT
        objectness = objectness + functional.binary_cross_entropy_with_logits(
            logits[index, chosen], is_object.to(logits.dtype), reduction="sum"
        )
        rows = chosen[is_object]
        wanted = encode(anchors[rows], truth.boxes[nearest[rows]], DELTA_WEIGHTS)
        anchor_box = anchor_box + (deltas[index, rows] - wanted).abs().sum()
    num_anchors = config.num_anchors * batch.num_of_step
    return objectness / num_anchors, anchor_box / num_anchors


def _pick_regions(
    proposals: Proposals,
    truth: Truth,
    background: int,
    config: TeachConfig,
    random: torch.Generator,
) -> Regions:
    """The proposals of one picture that enter the loss, with the object each answers for."""
    boxes = torch.cat([proposals.boxes, truth.boxes])
    nearest, verdict = match(
        iou(boxes, truth.boxes),
        low=config.proposal_iou,
        high=config.proposal_iou,
        best_always=False,
    )
    chosen = sample(verdict, num=config.num_regions, share=config.region_share, random=random)
    boxes, nearest, is_object = boxes[chosen], nearest[chosen], verdict[chosen] == OBJECT
    if len(truth.boxes) == 0:
        nowhere = torch.full_like(nearest, background)
        return Regions(boxes, nowhere, boxes, torch.full_like(nearest, NO_ATTRIBUTE))
    return Regions(
        boxes=boxes,
        labels=torch.where(is_object, truth.labels[nearest], background),
        targets=truth.boxes[nearest],
        attributes=torch.where(is_object, truth.attributes[nearest], NO_ATTRIBUTE),
    )
