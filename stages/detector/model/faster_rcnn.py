"""The Faster R-CNN: backbone, proposals and box heads joined.

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
    detections_of_pictures,
    label_scores,
)
from stages.detector.model.resnet import RES5, ResNet
from stages.detector.model.rpn import ProposalNetwork
from stages.detector.model.second_classifier import SecondClassifier, joined
from stages.detector.net_config import PlainConfig, ResNetConfig, TeacherConfig
from stages.detector.ops.boxes import NOT_FINITE, clip_to, decode, far_corners
from stages.detector.ops.pooler import Level, picture_of_boxes


class Detections(NamedTuple):
    """Objects of one picture, by falling score."""

    boxes: Tensor  # [O, 4], pixels of the network's input; with the rule "proposals" not regressed
    scores: Tensor  # [O], softmax probability of the label, with `objectness_power` less
    labels: Tensor  # [O], int64
    features: Tensor  # [O, D], of the proposal that an object comes from
    probabilities: Tensor  # [O, L], softmax of that proposal without the background's column
    attributes: Tensor | None  # [O, A], softmax of that proposal's attributes


class Maps(NamedTuple):
    """What the backbone gives of a batch."""

    levels: list[Level]  # for proposals and boxes, fine to coarse
    stages: list[Level]  # res4 and res5 as they are; none without a second classifier


class Looked(NamedTuple):
    """What the net says of boxes."""

    features: Tensor  # [R, D], single precision
    logits: Tensor  # [R, L + 1], of the box head, background last
    deltas: Tensor  # [R, L, 4]
    second: Tensor | None  # [R, L + 1], logits of the second classifier


class _Chosen(NamedTuple):
    """Which objects are reported, picture after picture, before their proposals are looked up."""

    boxes: Tensor  # [O, 4], pixels of the network's input
    scores: Tensor  # [O], falling within a picture
    labels: Tensor  # [O], int64
    source: Tensor  # [O], int64, row of the proposal among those of all pictures


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
        self.second_classifier = (
            SecondClassifier(config.backbone.stage_widths[2:], num_labels)
            if config.boxes.second_classifier and isinstance(config.backbone, ResNetConfig)
            else None
        )
        self.attribute_predictor = (
            AttributePredictor(num_labels, num_attributes, config.boxes) if num_attributes else None
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, levels: list[Level], boxes: list[Tensor]) -> Tensor:
        """Features [R, D] of boxes, one [R_i, 4] a picture, picture after picture."""
        # The coarsest level of a pyramid serves proposals alone.
        return self.box_head(levels[:-1] if len(levels) > 1 else levels, boxes)

    def maps(self, pictures: Tensor) -> Maps:
        """The backbone's maps of pictures [B, 3, H, W]."""
        if self.second_classifier is None:
            return Maps(self.backbone(pictures), [])
        assert isinstance(self.backbone, Pyramid)
        levels, stages = self.backbone.maps(pictures)
        return Maps(levels, stages)

    def look(self, maps: Maps, boxes: list[Tensor]) -> Looked:
        """What the net says of boxes, one [R_i, 4] a picture, picture after picture."""
        features = self.features(maps.levels, boxes).float()
        second = None
        if self.second_classifier is not None:
            second = self.second_classifier(maps.stages, boxes)
        logits, deltas = self.box_predictor(features)
        return Looked(features, logits, deltas, second)

    def class_logits(self, looked: Looked) -> Tensor:
        """Logits [R, L + 1] of the classes, background last, by all classifiers together."""
        if looked.second is None:
            return looked.logits
        return joined(looked.logits, looked.second, self.config.boxes.second_classifier)

    @torch.no_grad()
    def find(
        self,
        pictures: Tensor,
        sizes: list[tuple[int, int]],
        scales: list[tuple[float, float]] | None = None,
    ) -> list[Detections]:
        """Objects in pictures [B, 3, H, W] of `sizes` (height, width) without padding.

        scales: by what each picture was enlarged, along x and y (`Prepared.scale`). Caffe's models
        need it, as they measure in pixels of the original. Raises ValueError where they miss it,
        and where boxes or scores are not finite.
        """
        if scales is None and self.config.choice.rule == "proposals":
            raise BoxlessError(
                "scales: got None, expected one a picture, as the rule 'proposals' "
                "compares boxes in pixels of the original; pass Prepared.scale"
            )
        maps = self.maps(pictures)
        scores = self.proposal_network(maps.levels)
        proposals = self.proposal_network.propose(scores, sizes, scales)
        boxes = [picture.boxes for picture in proposals]
        looked = self.look(maps, boxes)
        features, deltas, logits = looked.features, looked.deltas, self.class_logits(looked)
        attributes = None
        if self.attribute_predictor is not None:
            attributes = self.attribute_predictor.probabilities(features, logits.argmax(1))
        probabilities = logits.softmax(1)[:, :-1]
        if self.config.choice.rule == "proposals":
            assert scales is not None
            chosen, counts = self._choose_proposals(boxes, probabilities, scales)
        else:
            objectness = torch.cat([picture.logits for picture in proposals])
            chosen, counts = self._choose_boxes(boxes, objectness, deltas, probabilities, sizes)
        fields = [*chosen[:3], features[chosen.source], probabilities[chosen.source]]
        by_picture = [field.split(counts) for field in fields]
        attributes_of = (
            [None] * len(counts) if attributes is None else attributes[chosen.source].split(counts)
        )
        return [Detections._make(own) for own in zip(*by_picture, attributes_of)]

    def _choose_proposals(
        self, boxes: list[Tensor], probabilities: Tensor, scales: list[tuple[float, float]]
    ) -> tuple[_Chosen, list[int]]:
        """The proposals that are objects themselves, and how many are of each picture; `boxes`
        are those of each picture, probabilities [R, L]."""
        sources, first = [], 0
        for proposed, scale in zip(boxes, scales):
            own = probabilities[first : first + len(proposed)]
            original = proposed / proposed.new_tensor(scale * 2)
            source = best_proposals(original, own, self.config.choice)
            best = own[source].amax(1)
            order = torch.sort(best, descending=True, stable=True).indices
            sources.append(first + source[order])
            first += len(proposed)
        source = torch.cat(sources)
        best_scores, labels = probabilities[source].max(1)
        chosen = _Chosen(torch.cat(boxes)[source], best_scores, labels, source)
        return chosen, [len(some) for some in sources]

    def _choose_boxes(
        self,
        boxes: list[Tensor],
        objectness: Tensor,
        deltas: Tensor,
        probabilities: Tensor,
        sizes: list[tuple[int, int]],
    ) -> tuple[_Chosen, list[int]]:
        """The objects among each proposal's boxes for each label, and how many are of each
        picture; `boxes` are the proposals of each picture, deltas [R, L, 4]."""
        choice, inclusive = self.config.choice, self.config.inclusive_boxes
        by_label = label_scores(probabilities, objectness, choice)
        source, label = candidates(by_label, choice)
        picture = picture_of_boxes(boxes)[source]
        ends = torch.arange(1, len(boxes), device=picture.device)
        decoded = decode(
            torch.cat(boxes)[source],
            deltas[source, label],
            self.config.boxes.delta_weights,
            inclusive=inclusive,
        )
        # All by one read from the device.
        num_nan = probabilities.isnan().sum() + decoded.isnan().sum()
        *starts, broken = torch.cat([torch.searchsorted(picture, ends), num_nan[None]]).tolist()
        if broken:
            raise BoxlessError(NOT_FINITE)
        starts = [0, *starts, len(picture)]
        counts = [end - start for start, end in zip(starts, starts[1:])]
        decoded = clip_to(decoded, far_corners(decoded, sizes)[picture], inclusive=inclusive)
        scores = by_label[source, label]
        kept, num_kept = detections_of_pictures(decoded, scores, label, counts, choice)
        return _Chosen(decoded[kept], scores[kept], label[kept], source[kept]), num_kept


def _build_backbone(config: PlainConfig | ResNetConfig) -> PlainBackbone | ResNet | Pyramid:
    if isinstance(config, PlainConfig):
        return PlainBackbone(config)
    if config.fpn_width is None:
        return ResNet(config, num_stages=RES5)
    return Pyramid(config)
