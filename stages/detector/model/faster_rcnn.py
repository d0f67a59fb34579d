"""Faster R-CNN: the parts joined.

Ren et al., 2015 (https://arxiv.org/abs/1506.01497), in detectron2's reading, or where the config
says so in that of bottom-up attention (Anderson et al., https://arxiv.org/abs/1707.07998). A batch
is one tensor of pictures, smaller ones padded at the right and bottom with zeros after
normalisation; boxes are in pixels of that tensor.

Letters: B pictures, R boxes of the whole batch, P proposals of a picture, O objects of a
picture, D feature size, L labels (background not counted), A attributes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from boxless.errors import BoxlessError
from stages.detector.model.box_heads import AttributePredictor, BoxPredictor, build_box_head
from stages.detector.model.fpn import Pyramid
from stages.detector.model.plain_backbone import PlainBackbone
from stages.detector.model.postprocess import (
    best_proposals,
    candidates,
    detections,
    label_scores,
)
from stages.detector.model.resnet import RES5, ResNet
from stages.detector.model.rpn import ProposalNetwork, Proposals
from stages.detector.net_config import PlainConfig, ResNetConfig, TeacherConfig
from stages.detector.ops.boxes import clip, decode
from stages.detector.ops.pooler import Level


class Detections(NamedTuple):
    """Objects of one picture, by falling score."""

    boxes: Tensor  # [O, 4], pixels of the network's input; with the rule "proposals" not regressed
    scores: Tensor  # [O], softmax probability of the label, with `objectness_power` less
    labels: Tensor  # [O], int64
    features: Tensor  # [O, D], of the proposal that an object comes from
    probabilities: Tensor  # [O, L], softmax of that proposal without the background's column
    attributes: Tensor | None  # [O, A], softmax of that proposal's attributes


class _Chosen(NamedTuple):
    """Which objects of one picture are reported, before their proposals are looked up."""

    boxes: Tensor  # [O, 4], pixels of the network's input
    scores: Tensor  # [O], falling
    labels: Tensor  # [O], int64
    source: Tensor  # [O], int64, row of the proposal among those of the picture


class FasterRCNN(nn.Module):
    """Backbone, proposal network, box head, predictors."""

    def __init__(self, config: TeacherConfig, *, num_labels: int, num_attributes: int) -> None:
        super().__init__()
        self.config, self.num_labels = config, num_labels
        self.backbone = _build_backbone(config.backbone)
        self.proposal_network = ProposalNetwork(
            self.backbone.width, config.proposals, inclusive=config.inclusive_boxes
        )
        self.box_head = build_box_head(self.backbone.width, config)
        self.box_predictor = BoxPredictor(
            config.boxes.feature_size, num_labels, class_agnostic=config.boxes.class_agnostic
        )
        self.attribute_predictor = (
            AttributePredictor(num_labels, num_attributes, config.boxes) if num_attributes else None
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, levels: list[Level], boxes: list[Tensor]) -> Tensor:
        """Features [R, D] of boxes, one [R_i, 4] a picture, picture after picture."""
        # The coarsest level of a pyramid serves proposals alone.
        return self.box_head(levels[:-1] if len(levels) > 1 else levels, boxes)

    @torch.no_grad()
    def find(
        self,
        pictures: Tensor,
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None = None,
    ) -> list[Detections]:
        """Objects in pictures [B, 3, H, W] of `sizes` (height, width) without padding.

        scales: by what each picture was enlarged, along x and y (`Prepared.scale`). Caffe's models
        need it, as they measure in pixels of the original. Raises ValueError where they miss it.
        """
        if scales is None and self.config.choice.rule == "proposals":
            raise BoxlessError(
                "scales: got None, expected one a picture, as the rule 'proposals' "
                "compares boxes in pixels of the original; pass Prepared.scale"
            )
        levels = self.backbone(pictures)
        scores = self.proposal_network(levels)
        proposals = self.proposal_network.propose(scores, sizes, scales)
        boxes = [picture.boxes for picture in proposals]
        features = self.features(levels, boxes).float()
        logits, deltas = self.box_predictor(features)
        attributes = None
        if self.attribute_predictor is not None:
            attributes = self.attribute_predictor.probabilities(features, logits.argmax(1))
        probabilities = logits.softmax(1)[:, :-1]
        counts = [len(picture) for picture in boxes]
        of_picture = zip(deltas.split(counts), probabilities.split(counts), features.split(counts))
        attributes_of = None if attributes is None else attributes.split(counts)
        found = []
        for index, (own_deltas, own_probabilities, own_features) in enumerate(of_picture):
            some = self._choose(
                proposals[index],
                own_deltas,
                own_probabilities,
                sizes[index],
                None if scales is None else scales[index],
            )
            found.append(
                Detections(
                    some.boxes,
                    some.scores,
                    some.labels,
                    own_features[some.source],
                    own_probabilities[some.source],
                    None if attributes_of is None else attributes_of[index][some.source],
                )
            )
        return found

    def _choose(
        self,
        proposals: Proposals,
        deltas: Tensor,
        probabilities: Tensor,
        size: tuple[int, int],
        scale: tuple[float, float] | None,
    ) -> _Chosen:
        """The objects of one picture of `size` from its proposals, their deltas [P, L, 4] and
        probabilities [P, L]."""
        choice, inclusive = self.config.choice, self.config.inclusive_boxes
        proposed = proposals.boxes
        if choice.rule == "proposals":
            assert scale is not None
            original = proposed / proposed.new_tensor(scale * 2)
            source = best_proposals(original, probabilities, choice)
            best = probabilities[source].max(1)
            order = torch.sort(best.values, descending=True, stable=True).indices
            source = source[order]
            return _Chosen(proposed[source], best.values[order], best.indices[order], source)
        by_label = label_scores(probabilities, proposals.logits, choice)
        source, label = candidates(by_label, choice)
        boxes = decode(
            proposed[source],
            deltas[source, label],
            self.config.boxes.delta_weights,
            inclusive=inclusive,
        )
        boxes = clip(boxes, size, inclusive=inclusive)
        scores = by_label[source, label]
        kept = detections(boxes, scores, label, choice)
        return _Chosen(boxes[kept], scores[kept], label[kept], source[kept])


def _build_backbone(config: PlainConfig | ResNetConfig) -> PlainBackbone | ResNet | Pyramid:
    if isinstance(config, PlainConfig):
        return PlainBackbone(config)
    if config.fpn_width is None:
        return ResNet(config, num_stages=RES5)
    return Pyramid(config)
