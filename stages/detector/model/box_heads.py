"""Box heads: feature, class, box deltas and attribute of a box.

The predictors work in single precision also where the rest runs in bfloat16, as what they say
decides which objects there are.

Letters: R boxes, D feature size, L labels (background not counted), A attributes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.detector.model.res5_head import Res5BoxHead
from stages.detector.net_config import BoxConfig, ResNetConfig, TeacherConfig
from stages.detector.ops.pooler import Level, pool


class LinearBoxHead(nn.Module):
    """Two linear layers over the pooled bins, as in feature pyramid models."""

    def __init__(self, width: int, config: BoxConfig) -> None:
        super().__init__()
        self.config = config
        self.fc1 = nn.Linear(width * config.num_bins**2, config.feature_size)
        self.fc2 = nn.Linear(config.feature_size, config.feature_size)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, levels: list[Level], boxes: list[Tensor]) -> Tensor:
        """Features [R, D] of boxes, one [R_i, 4] a picture."""
        bins = _pool(levels, boxes, self.config)
        return torch.relu(self.fc2(torch.relu(self.fc1(bins.flatten(1)))))


class ConvolutionalBoxHead(nn.Module):
    """Convolutions over the pooled bins, then their mean, where C4 models run ResNet's last
    stage."""

    def __init__(self, width: int, config: BoxConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(width, config.feature_size, 3, padding=1)
        self.conv2 = nn.Conv2d(config.feature_size, config.feature_size, 3, padding=1)
        for layer in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, levels: list[Level], boxes: list[Tensor]) -> Tensor:
        """Features [R, D] of boxes, one [R_i, 4] a picture."""
        bins = _pool(levels, boxes, self.config)
        return torch.relu(self.conv2(torch.relu(self.conv1(bins)))).mean((2, 3))


def _pool(levels: list[Level], boxes: list[Tensor], config: BoxConfig) -> Tensor:
    """The bins [R, C, P, P] of boxes, one [R_i, 4] a picture."""
    return pool(
        levels,
        boxes,
        num_bins=config.num_bins,
        sampling_ratio=config.sampling_ratio,
        canonical_box_px=config.canonical_box_px,
    )


def build_box_head(width: int, config: TeacherConfig) -> nn.Module:
    """The box head that `config.boxes.head` names, for levels of `width` channels."""
    if config.boxes.head == "res5":
        assert isinstance(config.backbone, ResNetConfig)
        return Res5BoxHead(config.backbone, config.boxes)
    heads = {"fc": LinearBoxHead, "conv": ConvolutionalBoxHead}
    return heads[config.boxes.head](width, config.boxes)


class BoxPredictor(nn.Module):
    """Class logits, background last, and box deltas (Fast R-CNN, 2015), for each class or, where
    `class_agnostic`, the same for all."""

    def __init__(self, feature_size: int, num_labels: int, *, class_agnostic: bool = False) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.cls_score = nn.Linear(feature_size, num_labels + 1)
        self.bbox_pred = nn.Linear(feature_size, 4 if class_agnostic else num_labels * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [R, D] -> logits [R, L + 1], deltas [R, L, 4]."""
        with torch.autocast(features.device.type, enabled=False):
            wide = features.float()
            deltas = self.bbox_pred(wide).unflatten(1, (-1, 4))
            return self.cls_score(wide), deltas.expand(-1, self.num_labels, -1)


class AttributePredictor(nn.Module):
    """Attributes of a box given its class, as bottom-up attention's detectron2 models have it.

    Anderson et al., 2018 (https://arxiv.org/abs/1707.07998), section 3.1: an embedding of the
    class beside the box's feature, a hidden layer, a softmax over attributes. In training the
    class is the true one; else it is the best of all logits, background among them. With
    `config.has_no_attribute` the softmax has one more column, the last: no attribute.
    """

    def __init__(self, num_labels: int, num_attributes: int, config: BoxConfig) -> None:
        super().__init__()
        self.obj_embed = nn.Embedding(num_labels + 1, config.attribute_embedding_size)
        self.fc = nn.Linear(
            config.feature_size + config.attribute_embedding_size, config.attribute_hidden_size
        )
        self.num_attributes = num_attributes
        self.attr_score = nn.Linear(
            config.attribute_hidden_size, num_attributes + config.has_no_attribute
        )
        nn.init.normal_(self.obj_embed.weight, std=0.1)
        nn.init.kaiming_uniform_(self.fc.weight, a=1)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features [R, D], labels [R] (L is background) -> logits [R, A], A + 1 with one for no
        attribute."""
        with torch.autocast(features.device.type, enabled=False):
            hidden = torch.cat([features.float(), self.obj_embed(labels)], 1)
            return self.attr_score(torch.relu(self.fc(hidden)))

    def probabilities(self, features: Tensor, labels: Tensor) -> Tensor:
        """The same -> softmax [R, A], without the column for no attribute."""
        return self(features, labels).softmax(1)[:, : self.num_attributes]
