"""Test-time augmentation: one picture in several sizes, and mirrored.

How views are combined is ours: the proposals of all views are one set, each view classifies and
regresses every proposal, and the mean over views is treated as the output of a single view.
detectron2's GeneralizedRCNNWithTTA instead pools the objects of all views and suppresses among
them.

Letters: V views, P proposals of all views, O objects, D feature size, L labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from boxless.errors import BoxlessError
from stages.detector.model.faster_rcnn import Detections, FasterRCNN
from stages.detector.model.postprocess import candidates, detections, label_scores
from stages.detector.ops.boxes import NOT_FINITE, clip, decode


class View(NamedTuple):
    """One picture as the net takes it."""

    picture: Tensor  # [1, 3, h, w], normalised, mirrored if `is_mirrored`
    scale: tuple[float, float]  # x, y: pixels of the first view to pixels of this one
    is_mirrored: bool = False


class _Said(NamedTuple):
    """What one view says of the proposals, in its own pixels."""

    boxes: Tensor  # [P, 4], the proposals
    features: Tensor  # [P, D]
    logits: Tensor  # [P, L + 1]
    deltas: Tensor  # [P, L, 4]


@torch.no_grad()
def find_in_views(model: FasterRCNN, views: list[View]) -> Detections:
    """Objects of one picture in pixels of its first view, by the rule "detections": probabilities,
    boxes, features and attributes are means over the views."""
    said, objectness = _ask(model, views)
    probabilities = torch.stack([one.logits.softmax(1) for one in said]).mean(0)
    best, probabilities = probabilities.argmax(1), probabilities[:, :-1]
    choice, weights = model.config.choice, model.config.boxes.delta_weights
    by_label = label_scores(probabilities, objectness, choice)
    source, labels = candidates(by_label, choice)
    boxes = [
        _to_first(
            clip(
                decode(one.boxes[source], one.deltas[source, labels], weights),
                _size(view),
            ),
            view,
        )
        for view, one in zip(views, said, strict=True)
    ]
    mean_boxes, scores = torch.stack(boxes).mean(0), by_label[source, labels]
    if probabilities.isnan().any() or mean_boxes.isnan().any():
        raise BoxlessError(NOT_FINITE)
    kept = detections(mean_boxes, scores, labels, choice)
    source = source[kept]
    attributes = None
    if model.attribute_predictor is not None:
        guesses = [
            model.attribute_predictor.probabilities(one.features[source], best[source])
            for one in said
        ]
        attributes = torch.stack(guesses).mean(0)
    return Detections(
        mean_boxes[kept],
        scores[kept],
        labels[kept],
        torch.stack([one.features[source] for one in said]).mean(0),
        probabilities[source],
        attributes,
    )


def _ask(model: FasterRCNN, views: list[View]) -> tuple[list[_Said], Tensor]:
    """What every view says of the proposals of all, and their logits [P] of the proposal network
    of the view that each is from."""
    maps = [model.maps(view.picture) for view in views]
    proposals, logits = [], []
    for view, own in zip(views, maps, strict=True):
        scores = model.proposal_network(own.levels)
        (some,) = model.proposal_network.propose(scores, [_size(view)])
        proposals.append(_to_first(some.boxes, view))
        logits.append(some.logits)
    of_all = torch.cat(proposals)
    said = []
    for view, own in zip(views, maps, strict=True):
        boxes = _from_first(of_all, view)
        looked = model.look(own, [boxes])
        said.append(_Said(boxes, looked.features, model.class_logits(looked), looked.deltas))
    return said, torch.cat(logits)


def _size(view: View) -> tuple[int, int]:
    return view.picture.shape[2], view.picture.shape[3]


def _to_first(boxes: Tensor, view: View) -> Tensor:
    """Boxes [.., 4] of a view in pixels of the first one."""
    if view.is_mirrored:
        boxes = _mirrored(boxes, view.picture.shape[3])
    return boxes / boxes.new_tensor(view.scale * 2)


def _from_first(boxes: Tensor, view: View) -> Tensor:
    """Boxes [.., 4] of the first view in pixels of another."""
    boxes = boxes * boxes.new_tensor(view.scale * 2)
    return _mirrored(boxes, view.picture.shape[3]) if view.is_mirrored else boxes


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes [.., 4] where they lie in the mirrored picture, `width` pixels wide."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], -1)
