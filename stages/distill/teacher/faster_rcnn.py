"""Faster R-CNN: the parts joined. Reached from `detect.py` (looking) and `losses.py` (learning).

Ren et al., 2015 (https://arxiv.org/abs/1506.01497), in detectron2's reading. A batch is one
tensor of pictures, smaller ones padded at the right and bottom with zeros after normalisation;
boxes are in pixels of that tensor.

Letters: B pictures, R boxes of the whole batch, P proposals of a picture, O objects of a
picture, D feature size, L labels (background not counted), A attributes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.distill.teacher.backbone import PlainBackbone
from stages.distill.teacher.boxes import clip, decode, is_nonempty
from stages.distill.teacher.heads import AttributePredictor, BoxPredictor, build_box_head
from stages.distill.teacher.net_config import PlainConfig, TeacherConfig
from stages.distill.teacher.nms import nms
from stages.distill.teacher.pooler import Level, pool
from stages.distill.teacher.rpn import ProposalNetwork


class Found(NamedTuple):
    """Objects of one picture, by falling score."""

    boxes: Tensor  # [O, 4], pixels of the network's input
    scores: Tensor  # [O], softmax probability of the label
    labels: Tensor  # [O], int64
    features: Tensor  # [O, D], of the proposal that an object comes from
    probabilities: Tensor  # [O, L], softmax of that proposal without the background's column
    attributes: Tensor | None  # [O, A], softmax of that proposal's attributes


class FasterRCNN(nn.Module):
    """Backbone, proposal network, box head, predictors."""

    def __init__(self, config: TeacherConfig, *, num_labels: int, num_attributes: int) -> None:
        super().__init__()
        self.config, self.num_labels = config, num_labels
        assert isinstance(config.backbone, PlainConfig)
        self.backbone = PlainBackbone(config.backbone)
        self.proposal_network = ProposalNetwork(self.backbone.width, config.proposals)
        self.box_head = build_box_head(self.backbone.width, config.boxes)
        self.box_predictor = BoxPredictor(config.boxes.feature_size, num_labels)
        self.attribute_predictor = (
            AttributePredictor(num_labels, num_attributes, config.boxes)
            if num_attributes else None)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, levels: list[Level], boxes: list[Tensor]) -> Tensor:
        """Features [R, D] of boxes, one [R_i, 4] a picture, picture after picture."""
        pooled = pool(levels, boxes, num_bins=self.config.boxes.num_bins,
                      sampling_ratio=self.config.boxes.sampling_ratio)
        return self.box_head(pooled)

    @torch.no_grad()
    def find(self, pictures: Tensor, sizes: list[tuple[int, int]]) -> list[Found]:
        """Objects in pictures [B, 3, H, W] of `sizes` (height, width) without padding."""
        levels = self.backbone(pictures)
        scores = self.proposal_network(levels)
        proposals = self.proposal_network.propose(scores, sizes)
        boxes = [picture.boxes for picture in proposals]
        features = self.features(levels, boxes)
        logits, deltas = self.box_predictor(features)
        attributes = None
        if self.attribute_predictor is not None:
            attributes = self.attribute_predictor(features, logits.argmax(1)).softmax(1)
        counts = [len(picture) for picture in boxes]
        found = []
        for index, rows in enumerate(torch.arange(len(features)).split(counts)):
            regressed = decode(boxes[index], deltas[rows].flatten(1),
                               self.config.boxes.delta_weights)
            regressed = clip(regressed.unflatten(1, (-1, 4)), sizes[index])
            some_attributes = None if attributes is None else attributes[rows]
            found.append(self._choose(regressed, logits[rows].softmax(1)[:, :-1], features[rows],
                                      some_attributes))
        return found

    def _choose(self, boxes: Tensor, probabilities: Tensor, features: Tensor,
                attributes: Tensor | None) -> Found:
        """The objects of one picture out of every (proposal, label): boxes [P, L, 4]."""
        proposal, label = torch.nonzero(
            (probabilities > self.config.choice.score_threshold) & is_nonempty(boxes),
            as_tuple=True)
        boxes, scores = boxes[proposal, label], probabilities[proposal, label]
        kept = nms(boxes, scores, label, threshold=self.config.choice.iou,
                   max_kept=self.config.choice.max_objects)
        source = proposal[kept]
        return Found(boxes[kept], scores[kept], label[kept], features[source],
                     probabilities[source], None if attributes is None else attributes[source])
